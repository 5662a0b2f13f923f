// Attention of one token's query heads, those that share a key/value head, to tokens from several
// places: sizes, and the plain loops of the scalar reference.
#ifndef NSA_ONNX_ORT_EXT_CPU_GATHERED_ATTENTION_H_
#define NSA_ONNX_ORT_EXT_CPU_GATHERED_ATTENTION_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "cpu/window_step.h"
#include "nsa_spec.h"

namespace nsa::cpu {

// What a masked logit is replaced by: a row that sees nothing is then uniform over its tokens.
constexpr float kMaskedLogit = std::numeric_limits<float>::lowest();

// Tokens are taken in tiles of as many: pages and blocks begin at multiples of it.
constexpr size_t kTileTokens = static_cast<size_t>(spec::kAlignment);
// Tiles whose logits stand side by side. With 64 tokens, the values of four vectors' width fill
// half of a first-level cache, and a sum is loaded and stored once per 64 multiply-adds.
constexpr size_t kChunkTiles = 4;
constexpr size_t kChunkTokens = kChunkTiles * kTileTokens;

// The shape of one call, the same for all its rows.
struct AttentionShape {
  size_t group;      // query heads of a row
  size_t dim;        // of query and key
  size_t value_dim;  // of value and output
  size_t key_pitch;  // elements from a token to the next
  size_t value_pitch;
  float scale;
};

// Tokens that lie one after the other, kTileTokens at most.
struct AttentionTile {
  const uint16_t* key;
  const uint16_t* value;
  size_t tokens;
};

// The largest D and Dv.
constexpr size_t kMostDim = 512;

// float32 elements of scratch that a row takes, whatever the instruction set.
inline size_t AttentionScratchSize(const AttentionShape& shape) {
  const auto lines = [](size_t size) { return (size + kLineFloats - 1) / kLineFloats * kLineFloats; };
  const size_t heads = lines(shape.group);  // a vector has no more lanes than a line
  const size_t most_width = 4 * kLineFloats;
  return heads * shape.dim + kTileTokens * (kMostDim + kLineFloats) + kChunkTokens * heads +
         kChunkTokens * most_width + lines(shape.group * shape.value_dim) + 3 * heads +
         kUnalignedFloats;
}

// Of the sums of a part of a row, in float32 elements.
inline size_t AttentionPartSize(const AttentionShape& shape) {
  return shape.group * (shape.value_dim + 2);
}

namespace scalar {

// Attention of one query head, token by token, in double.
template <class T>
class HeadAttention {
 public:
  HeadAttention(const AttentionShape& shape, const uint16_t* query)
      : shape_(shape), query_(query) {}

  // `masked`: every logit is kMaskedLogit.
  void Add(const AttentionTile& tile, bool masked) {
    for (size_t j = 0; j < tile.tokens; ++j) {
      double logit = double{kMaskedLogit};
      if (!masked) {
        logit = 0;
        const uint16_t* const key = tile.key + j * shape_.key_pitch;
        for (size_t d = 0; d < shape_.dim; ++d) {
          logit += double{T::ToFloat(query_[d])} * double{T::ToFloat(key[d])};
        }
        logit *= double{shape_.scale};
      }
      AddToken(logit, tile.value + j * shape_.value_pitch);
    }
  }

  // A row without any token is 0.
  void Finish(uint16_t* output) const {
    for (size_t d = 0; d < shape_.value_dim; ++d) {
      output[d] = T::FromFloat(empty_ ? 0.0f : static_cast<float>(results_[d] / sum_));
    }
  }

 private:
  void AddToken(double logit, const uint16_t* value) {
    const double max = logit > max_ ? logit : max_;
    const double before = std::exp(max_ - max), weight = std::exp(logit - max);
    sum_ = sum_ * before + weight;
    for (size_t d = 0; d < shape_.value_dim; ++d) {
      results_[d] = results_[d] * before + weight * double{T::ToFloat(value[d])};
    }
    max_ = max;
    empty_ = false;
  }

  const AttentionShape& shape_;
  const uint16_t* query_;
  bool empty_ = true;
  double max_ = double{kMaskedLogit};
  double sum_ = 0;
  double results_[kMostDim] = {};
};

}  // namespace scalar
}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_GATHERED_ATTENTION_H_
