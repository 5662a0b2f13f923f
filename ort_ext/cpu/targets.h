// The instruction set in use: chosen at run time by name, for all kernels of the process.
#ifndef NSA_ONNX_ORT_EXT_CPU_TARGETS_H_
#define NSA_ONNX_ORT_EXT_CPU_TARGETS_H_

#include <string>

#include "plan/dtype.h"

namespace nsa::cpu {

// Whether the plain reference runs. If not, Highway's dispatch gives the kernels of the set in use.
bool ScalarInUse();

// The kernel for `dtype` of the instruction set in use: one of `scalar`, or of the two that
// vectorized() points to (HWY_DYNAMIC_POINTER).
template <class Kernel, class Vectorized>
Kernel ChooseKernel(DType dtype, const Kernel (&scalar)[2], Vectorized vectorized) {
  // Asked first: Highway's choice is made with ours.
  const Kernel* kernels = ScalarInUse() ? scalar : vectorized();
  return kernels[static_cast<int>(dtype)];
}

// Its name, and all names this machine can run, best first, comma-separated. Static strings.
const char* TargetName();
const char* TargetNames();

// Switches the whole process to `name` ("auto": the best). Returns a message if it cannot.
std::string SetTarget(const char* name);

}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_TARGETS_H_
