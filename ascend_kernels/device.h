// What the kernels share on the device: constants of the hardware, small helpers. Compiled by
// CANN's compiler and, unchanged, by g++ on the look-alike (tests/sim/ascendc).
#ifndef NSA_ONNX_ASCEND_KERNELS_DEVICE_H_
#define NSA_ONNX_ASCEND_KERNELS_DEVICE_H_

#include <cstdint>

#include "kernel_operator.h"

namespace nsa_ascend {

constexpr int32_t kLanes = 64;        // float32 lanes of one repeat: 256 bytes
constexpr int32_t kBlockBytes = 32;   // the unified buffer's grain
constexpr int32_t kBlockFloats = 8;   // of float32
constexpr int32_t kBlockHalves = 16;  // of a 16-bit type
constexpr int32_t kMaxRepeats = 255;  // of one vector instruction

template <typename I>
__aicore__ inline I Min(I a, I b) {
  return a < b ? a : b;
}

template <typename I>
__aicore__ inline I Max(I a, I b) {
  return a > b ? a : b;
}

__aicore__ inline int32_t CeilDiv(int32_t a, int32_t b) { return (a + b - 1) / b; }

// The head group of a unit: N heads in `groups` groups that differ by at most one head.
struct HeadGroup {
  int32_t first;
  int32_t heads;
};

__aicore__ inline HeadGroup GroupOf(int32_t group, int32_t groups, int32_t all_heads) {
  const int32_t base = all_heads / groups, larger = all_heads % groups;
  return {group * base + Min(group, larger), base + (group < larger ? 1 : 0)};
}

}  // namespace nsa_ascend

#endif  // NSA_ONNX_ASCEND_KERNELS_DEVICE_H_
