// NsaCompress on an Ascend device by our own kernel.
#include "device/cann/ascend_kernels.h"

#include <cstddef>

#include "ascend_kernels/nsa_compress/launch.h"
#include "operators/nsa_compress/device.h"

namespace nsa::compress {
namespace {

static_assert(sizeof(NsaAscendRowRun) == sizeof(RowRun) &&
                  offsetof(NsaAscendRowRun, rows) == offsetof(RowRun, rows) &&
                  offsetof(NsaAscendRowRun, first_token) == offsetof(RowRun, first_token),
              "handed over as they are");

const auto& OwnKernel() {
  // Never destroyed: a thread of the host may still run a node while the process ends.
  using Launcher =
      cann::KernelLauncher<decltype(nsa_ascend_compress_plan), decltype(nsa_ascend_compress)>;
  static const Launcher& kernel = *new const Launcher("nsa_ascend_compress");
  return kernel;
}

}  // namespace

void RequireAscendKernels() { OwnKernel(); }

void LaunchAscendKernels(const Run& run, device::Launch& launch) {
  const int32_t type = cann::KernelType(run.dtype);
  const auto* runs = reinterpret_cast<const NsaAscendRowRun*>(run.plan->data());
  const NsaAscendCompress call{
      type,      run.tokens, run.heads, run.dim,
      run.block, run.stride, runs,      static_cast<int64_t>(run.plan->size())};
  OwnKernel().Launch(call, launch, [&](auto* start, const void* plan, int64_t blocks) {
    return start(launch.stream(), type, run.input, run.weight, run.output, plan, blocks);
  });
}

}  // namespace nsa::compress
