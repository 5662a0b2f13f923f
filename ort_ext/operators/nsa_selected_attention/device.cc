// NsaSelectedAttention for onnxruntime's CANN execution provider.
#include "operators/nsa_selected_attention/device.h"

#include "ort/device_indices.h"

namespace nsa::selected_attention {

const std::array<OperatorBackend<Node, Run>, 1> Operator::kBackends = {{
    {{cann::BackendChoice::kAclnn, RequireAclnn}, RequireAclnnNode, LaunchAclnn},
}};

void Operator::RunOnDevice(OrtKernelContext* context, const Node& node, DType dtype,
                           const ort::DeviceNode& device, LaunchFunction<Run> launch_run) {
  const auto body = [&](device::Launch& launch) {
    const ort::DeviceIndices topk =
        FetchIndices(ort::Input(context, Index::kTopkIndices), device, launch);
    const Inputs inputs(context, node, topk.on_host);
    const std::array<int64_t, 3> dims = inputs.output_dims();
    void* output = ort::Output(context, {dims.data(), 3});
    if (dims[0] == 0) return;
    const std::vector<int64_t>&query = inputs.query.dims, &key = inputs.key.dims;
    launch_run({dtype,
                inputs.query.data,
                inputs.key.data,
                inputs.value.data,
                topk.on_device,
                output,
                {query[0], query[1], query[2]},
                {key[0], key[1], key[2]},
                dims[2],
                &node.attributes,
                &inputs.plan.sequences,
                &inputs.plan.blocks},
               launch);
  };
  device.Run(context, body, [] { return ""; });
}

}  // namespace nsa::selected_attention
