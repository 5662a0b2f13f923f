// What each operator's launcher on the look-alike needs (operators/*.cc): the simulated twin of
// ascend_kernels/launch_npu.h.
#ifndef NSA_ONNX_TESTS_SIM_ASCENDC_LAUNCH_SIMULATED_H_
#define NSA_ONNX_TESTS_SIM_ASCENDC_LAUNCH_SIMULATED_H_

#include <cstdint>

#include "launch.h"
#include "run_kernel.h"

namespace ascendc_sim {

// Runs a kernel on the look-alike: its tensors, how many blocks, the seed of their order.
using Run = Counters (*)(const Tensors&, int, uint64_t);

// Runs it as a task called `name`: on the stream of the simulated device if there is one, else at
// once. Returns 0 or an ACL error code.
int32_t Submit(const char* name, Run run, void* stream, const void* input, const void* weight,
               void* output, const void* plan, int64_t blocks);

// The kernel for an element type of launch.h.
template <template <typename> class Kernel>
Run Choose(int32_t dtype) {
  if (dtype == NSA_ASCEND_FLOAT16) return RunKernel<Kernel<half>>;
  return RunKernel<Kernel<bfloat16_t>>;
}

}  // namespace ascendc_sim

#endif  // NSA_ONNX_TESTS_SIM_ASCENDC_LAUNCH_SIMULATED_H_
