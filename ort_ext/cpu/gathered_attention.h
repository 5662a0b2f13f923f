// Attention of one token's query heads, those that share a key/value head, to tokens from several
// places: sizes, and the plain loops of the scalar reference.
#ifndef NSA_ONNX_ORT_EXT_CPU_GATHERED_ATTENTION_H_
#define NSA_ONNX_ORT_EXT_CPU_GATHERED_ATTENTION_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/attention.h"
#include "cpu/scratch.h"
#include "nsa_spec.h"

namespace nsa::cpu {

// Tokens are taken in tiles of as many: pages and blocks begin at multiples of it.
constexpr size_t kGatherTokens = static_cast<size_t>(spec::kAlignment);
// Tiles whose logits stand side by side. With 64 tokens, the values of four vectors' width fill
// half of a first-level cache, and a sum is loaded and stored once per 64 multiply-adds.
constexpr size_t kGatherTiles = 4;
constexpr size_t kGatherChunk = kGatherTiles * kGatherTokens;

// The shape of one call, the same for all its rows.
struct GatherShape {
  size_t group;      // query heads of a row
  size_t dim;        // of query and key
  size_t value_dim;  // of value and output
  size_t key_pitch;  // elements from a token to the next
  size_t value_pitch;
  float scale;
};

// Tokens that lie one after the other, kGatherTokens at most.
struct GatheredTokens {
  const uint16_t* key;
  const uint16_t* value;
  size_t count;
};

// The largest D and Dv.
constexpr size_t kMostDim = static_cast<size_t>(spec::kAttentionLimits.max_head_dim);

// float32 elements of scratch that a row takes, whatever the instruction set.
inline size_t GatherScratchSize(const GatherShape& shape) {
  const size_t heads = RoundUp(shape.group, kLineFloats);  // a vector has no more lanes than a line
  const size_t most_width = 4 * kLineFloats;
  return heads * shape.dim + kGatherTokens * (kMostDim + kLineFloats) + kGatherChunk * heads +
         kGatherChunk * most_width + RoundUp(shape.group * shape.value_dim, kLineFloats) +
         3 * heads + kUnalignedFloats;
}

// Of the sums of a part of a row, in float32 elements.
inline size_t GatherPartSize(const GatherShape& shape) {
  return shape.group * (shape.value_dim + 2);
}

namespace scalar {

// Attention of one query head, token by token.
template <class T>
class HeadAttention {
 public:
  HeadAttention(const GatherShape& shape, const uint16_t* query) : shape_(shape), query_(query) {}

  // `masked`: every logit is kHidden.
  void Add(const GatheredTokens& tokens, bool masked) {
    for (size_t j = 0; j < tokens.count; ++j) {
      const uint16_t* const key = tokens.key + j * shape_.key_pitch;
      const float logit = masked ? kHidden : Logit<T>(query_, key, shape_.dim, shape_.scale);
      const float max = logit > max_ ? logit : max_;
      const float before = Exp(max_ - max), weight = Exp(logit - max);
      sum_ = sum_ * before + weight;
      const uint16_t* const value = tokens.value + j * shape_.value_pitch;
      for (size_t d = 0; d < shape_.value_dim; ++d) {
        const float product = weight * T::ToFloat(value[d]);
        results_[d] = results_[d] * before + product;
      }
      max_ = max;
      empty_ = false;
    }
  }

  // Of no token it is 0.
  void Finish(uint16_t* output) const {
    for (size_t d = 0; d < shape_.value_dim; ++d) {
      output[d] = T::FromFloat(empty_ ? 0.0f : results_[d] / sum_);
    }
  }

 private:
  const GatherShape& shape_;
  const uint16_t* query_;
  bool empty_ = true;
  float max_ = kHidden;
  float sum_ = 0;
  float results_[kMostDim] = {};
};

}  // namespace scalar
}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_GATHERED_ATTENTION_H_
