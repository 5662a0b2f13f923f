// How each operator's launch_plan.cc hands out a launch plan (nsa_ascend_*_plan of its launch.h).
#ifndef NSA_ONNX_ASCEND_KERNELS_LAUNCH_PLAN_H_
#define NSA_ONNX_ASCEND_KERNELS_LAUNCH_PLAN_H_

#include <cstdint>
#include <cstring>
#include <exception>
#include <vector>

#include "tiling.h"

namespace nsa_ascend {

// Hands out the words that tile(chip) makes for `cores` vector cores, as launch.h promises.
template <typename Tile>
int64_t HandOutPlan(int64_t cores, int64_t* plan, int64_t capacity, Tile tile) {
  try {
    Chip chip;
    chip.cores = cores < 1 ? 1 : cores;
    const std::vector<int64_t> words = tile(chip);
    const int64_t count = static_cast<int64_t>(words.size());
    if (plan && capacity >= count) std::memcpy(plan, words.data(), words.size() * sizeof(int64_t));
    return count;
  } catch (const std::exception&) {  // out of memory
    return -1;
  }
}

}  // namespace nsa_ascend

#endif  // NSA_ONNX_ASCEND_KERNELS_LAUNCH_PLAN_H_
