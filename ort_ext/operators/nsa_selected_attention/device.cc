// NsaSelectedAttention for onnxruntime's CANN execution provider.
#include "operators/nsa_selected_attention/device.h"

#include "operators/nsa_selected_attention/op.h"

namespace nsa::selected_attention {

const std::array<OperatorBackend<Node, Run>, 0> Operator::kBackends{};

// A session with such a node is refused when it is made.
void Operator::RunOnDevice(OrtKernelContext*, const Node&, DType, const ort::DeviceNode&,
                           LaunchFunction<Run>) {}

}  // namespace nsa::selected_attention
