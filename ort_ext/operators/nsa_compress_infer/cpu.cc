// NsaCompressInfer on the CPU.
#include <cstring>

#include "cpu/compress_decode.h"
#include "operators/nsa_compress_infer/op.h"

namespace nsa::compress_decode {

void CpuKernel::Compute(OrtKernelContext* context) const {
  const Inputs inputs(context, node_);
  // Everything is known to be right: from here on, memory changes.
  void* output = ort::Output(context, inputs.cache.shape());
  const size_t bytes = inputs.cache_bytes();
  if (output != inputs.cache.data && bytes > 0) std::memcpy(output, inputs.cache.data, bytes);
  const cpu::CompressDecodeData data{inputs.input.as<uint16_t>(),
                                     inputs.weight.as<uint16_t>(),
                                     static_cast<uint16_t*>(output),
                                     inputs.input.dims[2],
                                     inputs.input.dims[3],
                                     node_.block,
                                     node_.page,
                                     inputs.plan.data(),
                                     static_cast<int64_t>(inputs.plan.size())};
  cpu::RunCompressDecode(dtype_, data, ort::SessionThreads(context));
}

}  // namespace nsa::compress_decode
