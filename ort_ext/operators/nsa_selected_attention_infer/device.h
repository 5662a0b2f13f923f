// NsaSelectedAttentionInfer on an accelerator.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_DEVICE_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_DEVICE_H_

namespace nsa::selected_attention_decode {

// No backend has the operator.
struct Run {};

}  // namespace nsa::selected_attention_decode

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_DEVICE_H_
