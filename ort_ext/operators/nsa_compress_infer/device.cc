// NsaCompressInfer for onnxruntime's CANN execution provider.
#include "operators/nsa_compress_infer/device.h"

namespace nsa::compress_decode {

const OperatorBackend<Node, Run> Operator::kBackends[] = {
    {{cann::BackendChoice::kAscendKernels, RequireAscendKernels}, EveryNode, LaunchAscendKernels},
    {{cann::BackendChoice::kAclnn, RequireAclnn}, RequireAclnnNode, LaunchAclnn},
};

void Operator::RunOnDevice(OrtKernelContext* context, const Node& node, DType dtype,
                           const ort::DeviceNode& device, LaunchFunction<Run> launch_run) {
  const Inputs inputs(context, node);
  void* output = ort::Output(context, inputs.cache.shape());
  const size_t bytes = inputs.cache_bytes();
  if (bytes == 0) return;
  const Run run{dtype,
                inputs.input.data,
                inputs.weight.data,
                output,
                inputs.input.dims[0],
                node.page,
                inputs.input.dims[2],
                inputs.input.dims[3],
                inputs.cache.dims[0],
                node.block,
                &inputs.plan};
  const bool in_place = output == inputs.cache.data;
  device.Run(
      context,
      [&](device::Launch& launch) {
        if (!in_place) {
          launch.runtime().CopyOnDevice(output, inputs.cache.data, bytes, launch.stream());
        }
        if (!inputs.plan.empty()) launch_run(run, launch);
      },
      [&] {
        const bool changed = in_place && run.cache_touched;
        return changed ? "; the slots of cache that this step writes may have changed" : "";
      });
}

}  // namespace nsa::compress_decode
