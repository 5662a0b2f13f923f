// NsaCompressInfer in onnxruntime on the CPU.
#include <cstring>

#include "operators/nsa_compress_infer/kernel.h"
#include "operators/nsa_compress_infer/op.h"

namespace nsa::compress_decode {

void Operator::RunOnCpu(OrtKernelContext* context, const Node& node, DType dtype) {
  const Inputs inputs(context, node);
  // Everything is known to be right: from here on, memory changes.
  void* output = ort::Output(context, inputs.cache.shape());
  const size_t bytes = inputs.cache_bytes();
  if (output != inputs.cache.data && bytes > 0) std::memcpy(output, inputs.cache.data, bytes);
  const KernelData data{inputs.input.as<uint16_t>(),
                        inputs.weight.as<uint16_t>(),
                        static_cast<uint16_t*>(output),
                        inputs.input.dims[2],
                        inputs.input.dims[3],
                        node.block,
                        node.page,
                        inputs.plan.data(),
                        static_cast<int64_t>(inputs.plan.size())};
  RunKernel(dtype, data, ort::SessionThreads(context));
}

}  // namespace nsa::compress_decode
