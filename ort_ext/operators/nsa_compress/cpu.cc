// NsaCompress on the CPU.
#include "cpu/compress.h"
#include "operators/nsa_compress/op.h"

namespace nsa::compress {

void CpuKernel::Compute(OrtKernelContext* context) const {
  const Inputs inputs(context, node_);
  const std::array<int64_t, 3> dims = inputs.output_dims();
  void* output = ort::Output(context, {dims.data(), 3});
  const cpu::CompressData data{inputs.input.as<uint16_t>(),
                               inputs.weight.as<uint16_t>(),
                               static_cast<uint16_t*>(output),
                               dims[1],
                               dims[2],
                               node_.block,
                               node_.stride,
                               inputs.plan.data(),
                               static_cast<int64_t>(inputs.plan.size())};
  cpu::RunCompress(dtype_, data, ort::SessionThreads(context));
}

}  // namespace nsa::compress
