// Which instruction set runs: names, detection, NSA_ONNX_CPU_TARGET.
#include "cpu/kernels.h"

#include <string_view>

namespace nsa::cpu {

const Kernels& ActiveKernels() { return ScalarKernels(); }

const char* TargetName() { return "scalar"; }

const char* TargetNames() { return "scalar"; }

std::string SetTarget(const char* name) {
  const std::string_view wanted = name ? name : "";
  if (wanted == "auto" || wanted == "scalar") return {};
  return "CPU target must be auto or one of " + std::string(TargetNames()) + ", got " +
         std::string(wanted);
}

}  // namespace nsa::cpu
