// NsaSelectedAttentionInfer for onnxruntime's CANN execution provider.
#include "operators/nsa_selected_attention_infer/device.h"

#include "operators/nsa_selected_attention_infer/op.h"

namespace nsa::selected_attention_decode {

const std::array<OperatorBackend<Node, Run>, 0> Operator::kBackends{};

// A session with such a node is refused when it is made.
void Operator::RunOnDevice(OrtKernelContext*, const Node&, DType, const ort::DeviceNode&,
                           LaunchFunction<Run>) {}

}  // namespace nsa::selected_attention_decode
