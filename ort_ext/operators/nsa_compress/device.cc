// NsaCompress for onnxruntime's CANN execution provider.
#include "operators/nsa_compress/device.h"

#include "operators/nsa_compress/op.h"

namespace nsa::compress {

constexpr auto kEveryNode = [](const Node&) {};

const Offer<Node, Run> Operator::kOffers[] = {
    {{cann::BackendChoice::kAscendKernels, RequireAscendKernels}, kEveryNode, LaunchAscendKernels},
    {{cann::BackendChoice::kAclnn, RequireAclnn}, kEveryNode, LaunchAclnn},
};

void Operator::RunOnDevice(OrtKernelContext* context, const Node& node, DType dtype,
                           const ort::DeviceNode& device,
                           void (*launch_run)(const Run&, device::Launch&)) {
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
