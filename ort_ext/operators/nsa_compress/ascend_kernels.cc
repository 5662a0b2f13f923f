// NsaCompress by our own kernel.
#include "device/cann/ascend_kernels.h"

#include <cstddef>

#include "operators/nsa_compress/device.h"

namespace nsa::compress {

static_assert(sizeof(NsaAscendRowRun) == sizeof(RowRun) &&
                  offsetof(NsaAscendRowRun, rows) == offsetof(RowRun, rows) &&
                  offsetof(NsaAscendRowRun, first_token) == offsetof(RowRun, first_token),
              "handed over as they are");
void LaunchAscendKernels(const Run& run, device::Launch& launch) {
  const cann::Kernels& kernels = cann::GetKernels();
  const int32_t type = cann::KernelType(run.dtype);
  const auto* runs = reinterpret_cast<const NsaAscendRowRun*>(run.plan->data());
  const NsaAscendCompress call{
      type,      run.tokens, run.heads, run.dim,
      run.block, run.stride, runs,      static_cast<int64_t>(run.plan->size())};
  const std::vector<int64_t> plan = cann::MakePlan(kernels.compress_plan, call);
  const int64_t blocks = kernels.plan_blocks(plan.data());
  if (blocks == 0) return;
  const void* uploaded = launch.Upload(plan.data(), plan.size() * sizeof(int64_t));
  cann::Require(
      kernels.compress(launch.stream(), type, run.input, run.weight, run.output, uploaded, blocks),
      "nsa_ascend_compress");
}

}  // namespace nsa::compress
