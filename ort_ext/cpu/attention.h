// What the CPU kernels of the attention stages share on every instruction set: where tokens lie,
// sizes, and the plain loops of the scalar references.
#ifndef NSA_ONNX_ORT_EXT_CPU_ATTENTION_H_
#define NSA_ONNX_ORT_EXT_CPU_ATTENTION_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "cpu/float16.h"
#include "cpu/tokens.h"

namespace nsa::cpu {

// A logit that a mask hides is the lowest number, not minus infinity: a query that sees nothing is
// uniform over all keys.
constexpr float kHidden = std::numeric_limits<float>::lowest();

constexpr size_t RoundUp(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

// The CPU kernels work on tiles: some query heads (columns) of one key/value head.
constexpr size_t kTileColumns = 16;  // their number is a multiple: of the lanes of every vector
constexpr size_t kTileTokens = 64;  // keys that are taken at once: half a first-level cache at D 64
constexpr size_t kTileRows = 8;     // what is computed of keys is of a multiple of them

struct TileSize {
  size_t width;  // columns, a multiple of kTileColumns
  size_t dim;
  size_t value_dim;
};

// Memory of an AttentionTile, in float32 elements.
constexpr size_t TileFloats(const TileSize& size) {
  return size.width * (size.dim + size.value_dim + 2) + kTileTokens * size.dim;
}

namespace scalar {

// e^x for x <= 0, -infinity and NaN; relative error below 2^-22. Without the mathematical library,
// whose last bits differ between machines. attention-inl.h has the same as vectors, and the
// reasons.
inline float Exp(float x) {
  if (x < -110.0f) return 0.0f;
  constexpr float kMagic = 0x1.8p23f;
  const float shifted = x * 0x1.715476p0f + kMagic;
  const float n = shifted - kMagic;
  const float r = x - n * 0x1.63p-1f - n * -0x1.bd0106p-13f;
  float p = 1.0f / 5040;
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    p = p * r + c;
  }
  if (!(x <= 0.0f)) return p;  // NaN
  const int exponent = static_cast<int>(n), half = exponent / 2;
  const float first = FloatFromBits(static_cast<uint32_t>(half + 127) << 23);
  const float second = FloatFromBits(static_cast<uint32_t>(exponent - half + 127) << 23);
  return p * first * second;
}

// scale * <query, key>.
template <class T>
float Logit(const uint16_t* query, const uint16_t* key, size_t dim, float scale) {
  float sum = 0;
  for (size_t d = 0; d < dim; ++d) {
    const float product = T::ToFloat(query[d]) * T::ToFloat(key[d]);
    sum += product;
  }
  return sum * scale;
}

// Softmax of `count` logits in place; NaN where one of them is NaN or infinite.
inline void Softmax(float* logits, size_t count) {
  float most = kHidden, sum = 0;
  for (size_t j = 0; j < count; ++j) most = std::max(most, logits[j]);
  for (size_t j = 0; j < count; ++j) sum += logits[j] = Exp(logits[j] - most);
  for (size_t j = 0; j < count; ++j) logits[j] *= 1.0f / sum;
}

// sum[0 .. dim - 1] += weight * value.
template <class T>
void AddValue(float weight, const uint16_t* value, size_t dim, float* sum) {
  for (size_t d = 0; d < dim; ++d) {
    const float product = weight * T::ToFloat(value[d]);
    sum[d] += product;
  }
}

// One query head: the probabilities p of `count` tokens, and sum[0 .. value_dim - 1], its result.
// hidden[j] is not 0 where token j is not seen; null: it sees all.
template <class T>
void Attend(const uint16_t* query, size_t dim, float scale, const Tokens& keys,
            const Tokens& values, size_t value_dim, size_t count, const uint8_t* hidden, float* p,
            float* sum) {
  for (size_t j = 0; j < count; ++j) {
    const bool seen = hidden == nullptr || hidden[j] == 0;
    p[j] = seen ? Logit<T>(query, keys.At(j), dim, scale) : kHidden;
  }
  Softmax(p, count);
  std::fill(sum, sum + value_dim, 0.0f);
  for (size_t j = 0; j < count; ++j) AddValue<T>(p[j], values.At(j), value_dim, sum);
}

}  // namespace scalar
}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_ATTENTION_H_
