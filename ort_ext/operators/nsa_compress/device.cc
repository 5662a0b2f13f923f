// NsaCompress for onnxruntime's CANN execution provider.
#include "operators/nsa_compress/device.h"

#include "operators/nsa_compress/op.h"

namespace nsa::compress {

const OperatorBackend<Node, Run> Operator::kBackends[] = {
    {{cann::BackendChoice::kAscendKernels, RequireAscendKernels}, EveryNode, LaunchAscendKernels},
    {{cann::BackendChoice::kAclnn, RequireAclnn}, EveryNode, LaunchAclnn},
};

void Operator::RunOnDevice(OrtKernelContext* context, const Node& node, DType dtype,
                           const ort::DeviceNode& device, LaunchFunction<Run> launch_run) {
  const Inputs inputs(context, node, /*hands_on_lengths=*/true);
  const std::array<int64_t, 3> dims = inputs.output_dims();
  void* output = ort::Output(context, {dims.data(), 3});
  if (dims[0] == 0 || dims[2] == 0) return;  // D may be 0
  const Run run{dtype,
                inputs.input.data,
                inputs.weight.data,
                output,
                inputs.input.dims[0],
                dims[1],
                dims[2],
                dims[0],
                node.block,
                node.stride,
                inputs.actual_seq_len.as<int64_t>(),
                inputs.actual_seq_len.dims[0],
                &inputs.plan};
  device.Run(context, [&](device::Launch& launch) { launch_run(run, launch); }, [] { return ""; });
}

}  // namespace nsa::compress
