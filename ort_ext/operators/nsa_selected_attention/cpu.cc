// NsaSelectedAttention in onnxruntime on the CPU.
#include "operators/nsa_selected_attention/kernel.h"
#include "operators/nsa_selected_attention/op.h"

namespace nsa::selected_attention {

void Operator::RunOnCpu(OrtKernelContext* context, const Node& node, DType dtype) {
  const Inputs inputs(context, node);
  const std::array<int64_t, 3> dims = inputs.output_dims();
  void* output = ort::Output(context, {dims.data(), 3});
  const KernelData data{inputs.query.as<uint16_t>(),
                        inputs.key.as<uint16_t>(),
                        inputs.value.as<uint16_t>(),
                        static_cast<uint16_t*>(output),
                        dims[0],
                        inputs.key.dims[1],
                        node.attributes.heads / inputs.key.dims[1],
                        inputs.key.dims[2],
                        dims[2],
                        node.attributes.select_block,
                        node.attributes.select_count,
                        static_cast<float>(node.attributes.scale),
                        *node.attributes.causal != 0,
                        &inputs.plan};
  RunKernel(dtype, data, ort::SessionThreads(context));
}

}  // namespace nsa::selected_attention
