// Scratch memory of the CPU kernels.
#ifndef NSA_ONNX_ORT_EXT_CPU_SCRATCH_H_
#define NSA_ONNX_ORT_EXT_CPU_SCRATCH_H_

#include <cstddef>
#include <cstdint>

namespace nsa::cpu {

constexpr size_t kLineFloats = 64 / sizeof(float);  // of a cache line
// The kernels begin with a whole cache line of what they are given as scratch.
constexpr size_t kUnalignedFloats = kLineFloats - 1;

// Scratch memory from the first whole cache line on.
inline float* AlignedToLine(float* scratch) {
  const size_t past = reinterpret_cast<uintptr_t>(scratch) / sizeof(float) % kLineFloats;
  return scratch + (past == 0 ? 0 : kLineFloats - past);
}

}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_SCRATCH_H_
