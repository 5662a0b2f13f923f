// NsaCompressAttentionInfer for onnxruntime's CANN execution provider.
#include "operators/nsa_compress_attention_infer/device.h"

#include "operators/nsa_compress_attention_infer/op.h"

namespace nsa::compress_attention_decode {

const std::array<OperatorBackend<Node, Run>, 0> Operator::kBackends{};

// A session with such a node is refused when it is made.
void Operator::RunOnDevice(OrtKernelContext*, const Node&, DType, const ort::DeviceNode&,
                           LaunchFunction<Run>) {}

}  // namespace nsa::compress_attention_decode
