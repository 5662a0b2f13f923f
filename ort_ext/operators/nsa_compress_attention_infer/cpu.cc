// NsaCompressAttentionInfer in onnxruntime on the CPU.
#include "operators/nsa_compress_attention_infer/kernel.h"
#include "operators/nsa_compress_attention_infer/op.h"

namespace nsa::compress_attention_decode {

void Operator::RunOnCpu(OrtKernelContext* context, const Node& node, DType dtype) {
  const Inputs inputs(context, node);
  const std::array<int64_t, 3> dims = inputs.output_dims();
  const std::array<int64_t, 3> selected_dims = inputs.selected_dims(node);
  void* const output = ort::Output(context, {dims.data(), 3}, 0);
  void* const selected = ort::Output(context, {selected_dims.data(), 3}, 1);
  const AttentionAttributes& of = node.attributes;
  const KernelData data{inputs.query.as<uint16_t>(),
                        inputs.key.as<uint16_t>(),
                        inputs.value.as<uint16_t>(),
                        static_cast<uint16_t*>(output),
                        static_cast<int32_t*>(selected),
                        dims[1],
                        *of.kv_heads,
                        inputs.query.dims[2],
                        dims[2],
                        static_cast<float>(of.scale),
                        *of.block,
                        *of.stride,
                        of.select_block,
                        of.select_count,
                        *of.page,
                        inputs.plan.sequences.data(),
                        dims[0],
                        inputs.plan.pages.data()};
  RunKernel(dtype, data, ort::SessionThreads(context));
}

}  // namespace nsa::compress_attention_decode
