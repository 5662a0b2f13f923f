// What the operators that compress windows share: where windows are, and the checks of their sizes.
//
// The C++ side of nsa_onnx/operators/windows.py. A check returns the message of the first
// violation, or an empty string.
#ifndef NSA_ONNX_PLAN_WINDOWS_H_
#define NSA_ONNX_PLAN_WINDOWS_H_

#include <cstdint>
#include <string>

#include "nsa_spec.h"
#include "plan/caller.h"

namespace nsa {

// T' of one segment: windows that fit into `length` tokens.
inline int64_t WindowCount(int64_t length, int64_t block, int64_t stride) {
  return length < block ? 0 : 1 + (length - block) / stride;
}

// Whether the last token of a sequence of `length` tokens completes a window.
inline bool CompletesWindow(int64_t length, int64_t block, int64_t stride) {
  return length >= block && (length - block) % stride == 0;
}

// The rows on compress_block_size and compress_stride alone (window_violations).
std::string CheckWindow(const spec::WindowLimits& limits, int64_t block, int64_t stride);

// Those on N, D and the weight (dim_violations), then CheckWindow.
std::string CheckDims(const spec::WindowLimits& limits, int64_t heads, int64_t dim,
                      const Shape& weight, int64_t block, int64_t stride);

// The rank of the lengths as a tensor; Python's lists have none.
std::string CheckLengthsRank(const Shape& actual_seq_len);

}  // namespace nsa

#endif  // NSA_ONNX_PLAN_WINDOWS_H_
