// What the CPU kernels that compress windows of tokens share on every instruction set: sizes, and
// the plain loops of the scalar reference.
#ifndef NSA_ONNX_ORT_EXT_CPU_WINDOW_STEP_H_
#define NSA_ONNX_ORT_EXT_CPU_WINDOW_STEP_H_

#include <cstddef>
#include <cstdint>

#include "cpu/float16.h"

namespace nsa::cpu {

// Windows that one token can belong to: block <= 128, stride >= 16.
constexpr size_t kMostWindows = 8;

namespace scalar {

// Adds `tokens` tokens of one head, `pitch` elements apart, to sum[0 .. dim - 1].
template <class T>
void Accumulate(const uint16_t* token, const uint16_t* weight, int64_t tokens, int64_t pitch,
                int64_t heads, int64_t dim, float* sum) {
  for (int64_t j = 0; j < tokens; ++j, token += pitch, weight += heads) {
    const float w = T::ToFloat(*weight);
    for (int64_t d = 0; d < dim; ++d) {
      const float product = T::ToFloat(token[d]) * w;
      sum[d] += product;
    }
  }
}

template <class T>
void Store(const float* sum, int64_t dim, uint16_t* output) {
  for (int64_t d = 0; d < dim; ++d) output[d] = T::FromFloat(sum[d]);
}

}  // namespace scalar
}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_WINDOW_STEP_H_
