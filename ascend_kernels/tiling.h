// What the operators' tilings share: the chip, the cost model's constants, small arithmetic. A
// tiling decides, on the host, which core computes what and in what pieces.
//
// The constants are estimates read from the vendor's documents, not measurements: they only rank
// tilings against each other, and the counters of benchmarks/ascend_counters.py do not depend on
// them.
#ifndef NSA_ONNX_ASCEND_KERNELS_TILING_H_
#define NSA_ONNX_ASCEND_KERNELS_TILING_H_

#include <algorithm>
#include <cstdint>

namespace nsa_ascend {

// Where the kernels run. The defaults are those of Atlas A2 (dav-2201).
struct Chip {
  int64_t cores = 48;  // vector cores
  // Bytes of each: what the platform gives out of 192 KiB. The rest is its own.
  int64_t unified_buffer = 192 * 1024 - 256;
};

// Cycles (1.85 GHz).
inline constexpr double kInstructionCycles =
    20;  // what a vector instruction costs besides its repeats
inline constexpr double kCoreBytesPerCycle = 64;   // GM to one core, when the others leave room
inline constexpr double kChipBytesPerCycle = 865;  // GM to all cores: 1.6 TB/s
inline constexpr double kCopyCycles = 100;         // what a copy costs besides its bytes
inline constexpr double kCachedShare = 0.25;       // of a byte's cost when it is read once more
inline constexpr int64_t kWantedBurst = 512;       // bytes; a shorter burst costs as much

inline constexpr int64_t kGrain = 32;      // bytes
inline constexpr int64_t kLaneCount = 64;  // float32 lanes of one repeat
inline constexpr int64_t kRepeatLimit =
    255;  // 8 bits: repeats of an instruction, and its repeat strides

inline int64_t DivUp(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t RoundUp(int64_t a, int64_t b) { return DivUp(a, b) * b; }

// What takes `core` cycles on the slowest core and `chip` cycles of everybody's GM traffic takes
// the longer of the two, and some of the other, because nothing overlaps perfectly.
inline double Overlap(double core, double chip) {
  return std::max(core, chip) + std::min(core, chip) / 4;
}

// Heads of the largest and the smallest of `groups` groups.
inline int64_t LargestGroup(int64_t heads, int64_t groups) { return DivUp(heads, groups); }
inline int64_t SmallestGroup(int64_t heads, int64_t groups) { return heads / groups; }

// A group of heads is a burst of its own per token: it has to be long enough. All heads always are,
// because neighbouring tokens are then neighbours in memory.
inline bool BurstsLongEnough(int64_t heads, int64_t dim, int64_t groups) {
  return groups == 1 || SmallestGroup(heads, groups) * dim * 2 >= kWantedBurst;
}

}  // namespace nsa_ascend

#endif  // NSA_ONNX_ASCEND_KERNELS_TILING_H_
