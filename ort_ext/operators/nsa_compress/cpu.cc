// NsaCompress in onnxruntime on the CPU.
#include "operators/nsa_compress/kernel.h"
#include "operators/nsa_compress/op.h"

namespace nsa::compress {

void Operator::RunOnCpu(OrtKernelContext* context, const Node& node, DType dtype) {
  const Inputs inputs(context, node);
  const std::array<int64_t, 3> dims = inputs.output_dims();
  void* output = ort::Output(context, {dims.data(), 3});
  const KernelData data{inputs.input.as<uint16_t>(),
                        inputs.weight.as<uint16_t>(),
                        static_cast<uint16_t*>(output),
                        dims[1],
                        dims[2],
                        node.block,
                        node.stride,
                        inputs.plan.data(),
                        static_cast<int64_t>(inputs.plan.size())};
  RunKernel(dtype, data, ort::SessionThreads(context));
}

}  // namespace nsa::compress
