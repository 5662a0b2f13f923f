// NsaCompressInfer by our own kernel.
#include "device/cann/ascend_kernels.h"

#include <cstddef>

#include "operators/nsa_compress_infer/device.h"

namespace nsa::compress_decode {

static_assert(sizeof(NsaAscendSlotWrite) == sizeof(SlotWrite) &&
                  offsetof(NsaAscendSlotWrite, slot) == offsetof(SlotWrite, slot) &&
                  offsetof(NsaAscendSlotWrite, runs) == offsetof(SlotWrite, runs),
              "handed over as they are");

void LaunchAscendKernels(const Run& run, device::Launch& launch) {
  const cann::Kernels& kernels = cann::GetKernels();
  const int32_t type = cann::KernelType(run.dtype);
  const auto* writes = reinterpret_cast<const NsaAscendSlotWrite*>(run.plan->data());
  const NsaAscendInfer call{type,      run.block_num, run.page,
                            run.heads, run.dim,       run.block,
                            run.slots, writes,        static_cast<int64_t>(run.plan->size())};
  const std::vector<int64_t> plan = cann::MakePlan(kernels.infer_plan, call);
  const int64_t blocks = kernels.plan_blocks(plan.data());
  if (blocks == 0) return;
  const void* uploaded = launch.Upload(plan.data(), plan.size() * sizeof(int64_t));
  run.cache_touched = true;
  cann::Require(
      kernels.infer(launch.stream(), type, run.input, run.weight, run.cache, uploaded, blocks),
      "nsa_ascend_infer");
}

}  // namespace nsa::compress_decode
