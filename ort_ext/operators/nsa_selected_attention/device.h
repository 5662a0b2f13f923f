// NsaSelectedAttention on an accelerator.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_DEVICE_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_DEVICE_H_

namespace nsa::selected_attention {

// No backend has the operator.
struct Run {};

}  // namespace nsa::selected_attention

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_DEVICE_H_
