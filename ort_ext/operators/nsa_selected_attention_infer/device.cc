// NsaSelectedAttentionInfer for onnxruntime's CANN execution provider.
#include "operators/nsa_selected_attention_infer/device.h"

namespace nsa::selected_attention_decode {

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
    launch_run({dtype,
                inputs.query.data,
                inputs.key.data,
                inputs.value.data,
                topk,
                output,
                {dims[0], dims[1], inputs.query.dims[2]},
                inputs.key.dims[0],
                dims[2],
                &node.attributes,
                &inputs.plan.lengths,
                inputs.block_table.as<int32_t>(),
                inputs.block_table.dims[1]},
               launch);
  };
  device.Run(context, body, [] { return ""; });
}

}  // namespace nsa::selected_attention_decode
