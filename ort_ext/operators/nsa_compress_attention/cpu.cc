// NsaCompressAttention in onnxruntime on the CPU.
#include "operators/nsa_compress_attention/kernel.h"
#include "operators/nsa_compress_attention/op.h"

namespace nsa::compress_attention {

void Operator::RunOnCpu(OrtKernelContext* context, const Node& node, DType dtype) {
  const Inputs inputs(context, node);
  const std::array<int64_t, 3> dims = inputs.output_dims();
  const std::array<int64_t, 3> selected_dims = inputs.selected_dims(node);
  void* const output = ort::Output(context, {dims.data(), 3}, 0);
  void* const selected = ort::Output(context, {selected_dims.data(), 3}, 1);
  const auto mask = [](const std::optional<ort::Tensor>& tensor) {
    return tensor ? tensor->as<uint8_t>() : nullptr;
  };
  const AttentionAttributes& of = node.attributes;
  const KernelData data{inputs.query.as<uint16_t>(),
                        inputs.key.as<uint16_t>(),
                        inputs.value.as<uint16_t>(),
                        mask(inputs.topk_mask),
                        mask(inputs.atten_mask),
                        static_cast<uint16_t*>(output),
                        static_cast<int32_t*>(selected),
                        inputs.topk_mask ? inputs.topk_mask->dims[1] : 0,
                        inputs.atten_mask ? inputs.atten_mask->dims[1] : 0,
                        dims[0],
                        dims[1],
                        selected_dims[1],
                        inputs.query.dims[2],
                        dims[2],
                        static_cast<float>(of.scale),
                        *of.block,
                        *of.stride,
                        of.select_block,
                        of.select_count,
                        inputs.plan.data(),
                        static_cast<int64_t>(inputs.plan.size()),
                        MostTokens(inputs.plan)};
  RunKernel(dtype, data, ort::SessionThreads(context));
}

}  // namespace nsa::compress_attention
