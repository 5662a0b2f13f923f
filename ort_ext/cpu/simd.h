// The instruction sets that simd.cc was compiled for and this machine can run.
#ifndef NSA_ONNX_ORT_EXT_CPU_SIMD_H_
#define NSA_ONNX_ORT_EXT_CPU_SIMD_H_

#include <vector>

#include "cpu/kernels.h"

namespace nsa::cpu {

struct SimdTarget {
  const char* name;  // Highway's: "AVX2"
  const Kernels* kernels;
};

// Best first. Not thread-safe: call it once.
std::vector<SimdTarget> SimdTargets();

}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_SIMD_H_
