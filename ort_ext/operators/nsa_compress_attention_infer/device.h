// NsaCompressAttentionInfer on an accelerator.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_DEVICE_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_DEVICE_H_

namespace nsa::compress_attention_decode {

// No backend has the operator.
struct Run {};

}  // namespace nsa::compress_attention_decode

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_DEVICE_H_
