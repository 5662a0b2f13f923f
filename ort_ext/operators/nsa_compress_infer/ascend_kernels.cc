// NsaCompressInfer on an Ascend device by our own kernel.
#include "device/cann/ascend_kernels.h"

#include <cstddef>

#include "ascend_kernels/nsa_compress_infer/launch.h"
#include "operators/nsa_compress_infer/device.h"

namespace nsa::compress_decode {
namespace {

static_assert(sizeof(NsaAscendSlotWrite) == sizeof(SlotWrite) &&
                  offsetof(NsaAscendSlotWrite, slot) == offsetof(SlotWrite, slot) &&
                  offsetof(NsaAscendSlotWrite, run_count) == offsetof(SlotWrite, run_count) &&
                  offsetof(NsaAscendSlotWrite, runs) == offsetof(SlotWrite, runs) &&
                  sizeof(NsaAscendPageRun) == sizeof(PageRun) &&
                  offsetof(NsaAscendPageRun, offset) == offsetof(PageRun, offset) &&
                  offsetof(NsaAscendPageRun, tokens) == offsetof(PageRun, tokens),
              "handed over as they are");

const auto& OwnKernel() {
  // Never destroyed: a thread of the host may still run a node while the process ends.
  using Launcher =
      cann::KernelLauncher<decltype(nsa_ascend_infer_plan), decltype(nsa_ascend_infer)>;
  static const Launcher& kernel = *new const Launcher("nsa_ascend_infer");
  return kernel;
}

}  // namespace

void RequireAscendKernels() { OwnKernel(); }

void LaunchAscendKernels(const Run& run, device::Launch& launch) {
  const int32_t type = cann::KernelType(run.dtype);
  const auto* writes = reinterpret_cast<const NsaAscendSlotWrite*>(run.plan->data());
  const NsaAscendInfer call{type,      run.block_num, run.page,
                            run.heads, run.dim,       run.block,
                            run.slots, writes,        static_cast<int64_t>(run.plan->size())};
  OwnKernel().Launch(call, launch, [&](auto* start, const void* plan, int64_t blocks) {
    run.cache_touched = true;
    return start(launch.stream(), type, run.input, run.weight, run.cache, plan, blocks);
  });
}

}  // namespace nsa::compress_decode
