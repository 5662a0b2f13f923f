// NsaCompressAttention on an accelerator.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_DEVICE_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_DEVICE_H_

namespace nsa::compress_attention {

// No backend has the operator.
struct Run {};

}  // namespace nsa::compress_attention

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_DEVICE_H_
