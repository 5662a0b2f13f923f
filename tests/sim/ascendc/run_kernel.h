// Runs a kernel of ascend_kernels/ on the look-alike; its plan says how large the tensors are.
#ifndef NSA_ONNX_TESTS_SIM_ASCENDC_RUN_KERNEL_H_
#define NSA_ONNX_TESTS_SIM_ASCENDC_RUN_KERNEL_H_

#include <cstdint>

#include "kernel_operator.h"
#include "plan_layout.h"

namespace ascendc_sim {

struct Tensors {
  uint8_t* input;
  uint8_t* weight;
  uint8_t* output;
  uint8_t* plan;
};

struct TensorBytes {
  uint64_t input, weight, output, plan;
};

inline TensorBytes BytesOf(const int64_t* plan) {
  return {static_cast<uint64_t>(plan[nsa_ascend::kPlanInputElements]) * 2,
          static_cast<uint64_t>(plan[nsa_ascend::kPlanBlock] * plan[nsa_ascend::kPlanHeads]) * 2,
          static_cast<uint64_t>(plan[nsa_ascend::kPlanOutputElements]) * 2,
          static_cast<uint64_t>(plan[nsa_ascend::kPlanWords]) * 8};
}

template <typename Kernel>
Counters RunKernel(const Tensors& tensors, int blocks, uint64_t seed) {
  const TensorBytes bytes = BytesOf(reinterpret_cast<const int64_t*>(tensors.plan));
  GlobalMemory memory;
  memory.Add({tensors.input, bytes.input, "input", false});
  memory.Add({tensors.weight, bytes.weight, "weight", false});
  memory.Add({tensors.output, bytes.output, "output", true});
  memory.Add({tensors.plan, bytes.plan, "plan", false});
  return Launch(&memory, blocks, seed, [&] {
    AscendC::TPipe pipe;
    Kernel kernel(&pipe);
    kernel.Init(tensors.input, tensors.weight, tensors.output, tensors.plan);
    kernel.Process();
  });
}

}  // namespace ascendc_sim

#endif  // NSA_ONNX_TESTS_SIM_ASCENDC_RUN_KERNEL_H_
