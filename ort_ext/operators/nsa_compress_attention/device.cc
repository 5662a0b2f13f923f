// NsaCompressAttention for onnxruntime's CANN execution provider.
#include "operators/nsa_compress_attention/device.h"

namespace nsa::compress_attention {

const std::array<OperatorBackend<Node, Run>, 1> Operator::kBackends = {{
    {{cann::BackendChoice::kAclnn, RequireAclnn}, RequireAclnnNode, LaunchAclnn},
}};

void Operator::RunOnDevice(OrtKernelContext* context, const Node& node, DType dtype,
                           const ort::DeviceNode& device, LaunchFunction<Run> launch_run) {
  const Inputs inputs(context, node);
  const std::array<int64_t, 3> dims = inputs.output_dims();
  const std::array<int64_t, 3> selected_dims = inputs.selected_dims(node);
  void* const output = ort::Output(context, {dims.data(), 3}, 0);
  void* const selected = ort::Output(context, {selected_dims.data(), 3}, 1);
  if (dims[0] == 0) return;
  const auto mask = [](const std::optional<ort::Tensor>& tensor) {
    return tensor ? Mask{tensor->data, tensor->dims[0], tensor->dims[1]} : Mask();
  };
  const std::vector<int64_t>& key = inputs.key.dims;
  const Run run{dtype,
                inputs.query.data,
                inputs.key.data,
                inputs.value.data,
                mask(inputs.atten_mask),
                mask(inputs.topk_mask),
                output,
                selected,
                {dims[0], dims[1], inputs.query.dims[2]},
                {key[0], key[1], key[2]},
                dims[2],
                &node.attributes,
                &inputs.plan};
  device.Run(context, [&](device::Launch& launch) { launch_run(run, launch); }, [] { return ""; });
}

}  // namespace nsa::compress_attention
