// Attention of one token's query heads, those that share a key/value head, to tokens from several
// places. Compiled once per instruction set, in each source that includes it.
//
// Tokens come in tiles of up to 16, and four tiles are a chunk. Of a chunk all logits are computed,
// then the weights, then what they add to the sums; as the maximum of the logits grows, the sums so
// far are scaled down. All of it is float32, in an order that the tiles alone decide.
//
// Logits stand side by side by token: lanes are query heads, so that maximum, exponential and sum
// need nothing across lanes. A tile's keys are converted once, into the first-level cache; an
// element of them is then spread over a vector, times a vector of the heads' queries. Where the
// heads fill too small a part of a vector, lanes are elements of D instead. For the sums lanes are
// elements of Dv, and a weight is spread.
#if defined(NSA_ONNX_ORT_EXT_CPU_GATHERED_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NSA_ONNX_ORT_EXT_CPU_GATHERED_ATTENTION_INL_H_
#undef NSA_ONNX_ORT_EXT_CPU_GATHERED_ATTENTION_INL_H_
#else
#define NSA_ONNX_ORT_EXT_CPU_GATHERED_ATTENTION_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/attention-inl.h"
#include "cpu/gathered_attention.h"
#include "cpu/scratch.h"
#include "cpu/vectors-inl.h"
#include "cpu/window_step-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nsa::cpu::HWY_NAMESPACE {

// From one token of a tile to the next. Known when compiled, so that a token needs no register; a
// cache line more than the largest D, so that the tokens' lines do not compete for the same places.
constexpr size_t kKeyPitch = kMostDim + kLineFloats;

template <int kIndex>
HWY_INLINE VF PickOfFour(VF v0, VF v1, VF v2, VF v3) {
  return Pick<kIndex>(v0, v1, v2, v3, v0, v0, v0, v0);
}

// The dot products of kTokens tokens of a tile and kVectors vectors of heads.
// query: [kVectors, dim, lanes]; to: [kTokens, pitch]; ahead: [dim], what is read next.
template <int kTokens, int kVectors>
void Logits(const float* query, const float* key, size_t dim, float* to, size_t pitch,
            const uint16_t* const* ahead) {
  static_assert(kTokens * kVectors <= 16 && kVectors <= 4);
  const DF df;
  const size_t lanes = hn::Lanes(df), vector_pitch = dim * lanes;
#define NSA_ZERO(i) VF s##i = hn::Zero(df);
  NSA_EACH_SUM(NSA_ZERO);
#undef NSA_ZERO
  for (size_t d = 0; d < dim; ++d) {
    PrefetchToSecondLevel(ahead[d]);
    // Sum i is of token i / kVectors, vector i % kVectors.
    const VF q0 = hn::LoadU(df, query);
    const VF q1 = kVectors > 1 ? hn::LoadU(df, query + vector_pitch) : q0;
    const VF q2 = kVectors > 2 ? hn::LoadU(df, query + 2 * vector_pitch) : q0;
    const VF q3 = kVectors > 3 ? hn::LoadU(df, query + 3 * vector_pitch) : q0;
#define NSA_ADD(i)                                                        \
  if constexpr (i < kTokens * kVectors) {                                 \
    const VF k = hn::Set(df, key[i / kVectors * kKeyPitch]);              \
    s##i = hn::MulAdd(PickOfFour<i % kVectors>(q0, q1, q2, q3), k, s##i); \
  }
    NSA_EACH_SUM(NSA_ADD);
#undef NSA_ADD
    query += lanes;
    ++key;
  }
#define NSA_STORE(i)                                                        \
  if constexpr (i < kTokens * kVectors) {                                   \
    hn::StoreU(s##i, df, to + i / kVectors * pitch + i % kVectors * lanes); \
  }
  NSA_EACH_SUM(NSA_STORE);
#undef NSA_STORE
}

// The same of eight tokens and one head, with lanes along D. query: [dim].
HWY_INLINE void LogitsOfHead(const float* query, const float* key, size_t dim, float* to,
                             size_t pitch) {
  const DF df;
#define NSA_ZERO(i) VF s##i = hn::Zero(df);
  NSA_EACH_VECTOR(NSA_ZERO);
#undef NSA_ZERO
  for (size_t d = 0; d < dim; d += hn::Lanes(df)) {
    const VF q = hn::LoadU(df, query + d);
#define NSA_ADD(i) s##i = hn::MulAdd(q, hn::LoadU(df, key + d + i * kKeyPitch), s##i);
    NSA_EACH_VECTOR(NSA_ADD);
#undef NSA_ADD
  }
#define NSA_STORE(i) to[i * pitch] = hn::ReduceSum(df, s##i);
  NSA_EACH_VECTOR(NSA_STORE);
#undef NSA_STORE
}

// The sums of kHeads heads, kVectors vectors of Dv: scaled by `before`, then the tokens' values
// times their weights. weight: [tokens, pitch]; value: [tokens, value_pitch]; sums: [kHeads,
// sums_pitch].
template <int kHeads, int kVectors>
void AddValues(const float* before, const float* weight, size_t pitch, const float* value,
               size_t value_pitch, size_t tokens, float* sums, size_t sums_pitch) {
  static_assert(kHeads * kVectors <= 16 && kVectors <= 4);
  const DF df;
  const size_t lanes = hn::Lanes(df);
  // Sum i is of head i / kVectors, vector i % kVectors.
#define NSA_LOAD(i)                                                                         \
  VF s##i = hn::Zero(df);                                                                   \
  if constexpr (i < kHeads * kVectors) {                                                    \
    s##i = hn::Mul(hn::Set(df, before[i / kVectors]),                                       \
                   hn::LoadU(df, sums + i / kVectors * sums_pitch + i % kVectors * lanes)); \
  }
  NSA_EACH_SUM(NSA_LOAD);
#undef NSA_LOAD
  for (size_t j = 0; j < tokens; ++j) {
    const VF v0 = hn::LoadU(df, value);
    const VF v1 = kVectors > 1 ? hn::LoadU(df, value + lanes) : v0;
    const VF v2 = kVectors > 2 ? hn::LoadU(df, value + 2 * lanes) : v0;
    const VF v3 = kVectors > 3 ? hn::LoadU(df, value + 3 * lanes) : v0;
#define NSA_ADD(i)                                                        \
  if constexpr (i < kHeads * kVectors) {                                  \
    const VF w = hn::Set(df, weight[i / kVectors]);                       \
    s##i = hn::MulAdd(PickOfFour<i % kVectors>(v0, v1, v2, v3), w, s##i); \
  }
    NSA_EACH_SUM(NSA_ADD);
#undef NSA_ADD
    weight += pitch;
    value += value_pitch;
  }
#define NSA_STORE(i)                                                               \
  if constexpr (i < kHeads * kVectors) {                                           \
    hn::StoreU(s##i, df, sums + i / kVectors * sums_pitch + i % kVectors * lanes); \
  }
  NSA_EACH_SUM(NSA_STORE);
#undef NSA_STORE
}

// Vectors of Dv that AddValues takes at once, with four heads.
constexpr int kValueVectors = kSums / 4;

// The state of one row, in scratch memory; used for one row after the other.
template <class T>
class RowAttention {
 public:
  RowAttention(const GatherShape& shape, float* scratch) : shape_(shape) {
    const size_t lanes = hn::Lanes(DF());
    vectors_ = (shape.group + lanes - 1) / lanes;
    pitch_ = vectors_ * lanes;
    // Per token and head a sum across lanes costs about as much as ten multiply-adds.
    along_dim_ = shape.group * (shape.dim / lanes + 10) < shape.dim * vectors_;
    float* next = AlignedToLine(scratch);
    const auto take = [&next](size_t size) {
      float* const taken = next;
      next += RoundUp(size, kLineFloats);
      return taken;
    };
    query_ = take(pitch_ * shape.dim);
    key_ = take(kGatherTokens * kKeyPitch);
    logits_ = take(kGatherChunk * pitch_);
    values_ = take(kGatherChunk * kValueVectors * lanes);
    sums_ = take(shape.group * shape.value_dim);
    max_ = take(pitch_);
    total_ = take(pitch_);
    before_ = take(pitch_);
  }

  // Begins a row: query [group, dim].
  void Begin(const uint16_t* query) {
    const DF df;
    const size_t lanes = hn::Lanes(df);
    for (size_t h = 0; h < shape_.group; ++h, query += shape_.dim) {
      if (along_dim_) {
        Convert<T>(query, shape_.dim, query_ + h * shape_.dim);
        continue;
      }
      Convert<T>(query, shape_.dim, key_);
      float* const to = query_ + h / lanes * shape_.dim * lanes + h % lanes;
      for (size_t d = 0; d < shape_.dim; ++d) to[d * lanes] = key_[d];
    }
    if (!along_dim_) {
      for (size_t h = shape_.group; h < pitch_; ++h) {
        float* const to = query_ + h / lanes * shape_.dim * lanes + h % lanes;
        for (size_t d = 0; d < shape_.dim; ++d) to[d * lanes] = 0;
      }
    }
    // What no head fills must be numbers: other kinds can be slow.
    if (along_dim_) std::fill_n(logits_, kGatherChunk * pitch_, 0.0f);
    std::fill_n(max_, pitch_, kHidden);
    std::fill_n(total_, pitch_, 0.0f);
    std::fill_n(sums_, shape_.group * shape_.value_dim, 0.0f);
    tiles_ = 0;
  }

  // `masked`: every logit of the row is kHidden.
  void Add(const GatheredTokens& tile, bool masked) {
    chunk_[tiles_++] = tile;
    if (tiles_ <= kGatherTiles) return;
    Take(kGatherTiles, masked);
    chunk_[0] = tile;
    tiles_ = 1;
  }

  // Call it when all tiles of the row, or of a part of it, have been added.
  void End(bool masked) {
    if (tiles_ > 0) Take(tiles_, masked);
  }

  // The sums of a part of a row, and back: GatherPartSize elements. A part without a token adds
  // nothing.
  void StorePart(float* to) const {
    std::copy_n(sums_, shape_.group * shape_.value_dim, to);
    to += shape_.group * shape_.value_dim;
    std::copy_n(max_, shape_.group, to);
    std::copy_n(total_, shape_.group, to + shape_.group);
  }
  void AddPart(const float* from) {
    const DF df;
    const float* const maxima = from + shape_.group * shape_.value_dim;
    const float* const totals = maxima + shape_.group;
    for (size_t h = 0; h < shape_.group; ++h, from += shape_.value_dim) {
      const float max = maxima[h] > max_[h] ? maxima[h] : max_[h];
      const VF before = Exp(hn::Set(df, max_[h] - max));
      const VF now = Exp(hn::Set(df, maxima[h] - max));
      const auto add = [&](VF sum, VF part)
                           HWY_ATTR { return hn::MulAdd(part, now, hn::Mul(sum, before)); };
      max_[h] = max;
      total_[h] = hn::GetLane(add(hn::Set(df, total_[h]), hn::Set(df, totals[h])));
      float* const sums = sums_ + h * shape_.value_dim;
      for (size_t d = 0; d < shape_.value_dim; d += hn::Lanes(df)) {
        hn::StoreU(add(hn::LoadU(df, sums + d), hn::LoadU(df, from + d)), df, sums + d);
      }
    }
  }

  // The result of a row that has tokens: output [group, value_dim].
  void Finish(uint16_t* output) const {
    const DF df;
    const size_t lanes = hn::Lanes(df);
    for (size_t h = 0; h < shape_.group; ++h) {
      const VF total = hn::Set(df, total_[h]);
      for (size_t d = 0; d < shape_.value_dim; d += lanes) {
        const VF sum = hn::LoadU(df, sums_ + h * shape_.value_dim + d);
        hn::StoreU(T::Narrow(hn::Div(sum, total)), DH(), output + h * shape_.value_dim + d);
      }
    }
  }

 private:
  // The first `tiles` tiles of the chunk.
  void Take(size_t tiles, bool masked) {
    size_t tokens = 0;
    for (size_t i = 0; i < tiles; ++i) {
      const GatheredTokens& tile = chunk_[i];
      if (!masked) {
        LookAhead(chunk_[std::min(i + 1, tiles_ - 1)]);
        TakeKeys(tile, logits_ + tokens * pitch_);
      }
      tokens += tile.count;
    }
    if (masked) std::fill_n(logits_, tokens * pitch_, kHidden);
    TakeWeights(tokens, masked ? 1.0f : shape_.scale);
    const size_t vectors = shape_.value_dim / hn::Lanes(DF());
    size_t v = 0;
    for (; v + kValueVectors <= vectors; v += kValueVectors)
      TakeValues<kValueVectors>(v, tiles, tokens);
    if constexpr (kValueVectors > 2) {
      for (; v + 2 <= vectors; v += 2) TakeValues<2>(v, tiles, tokens);
    }
    for (; v < vectors; ++v) TakeValues<1>(v, tiles, tokens);
  }

  // Lists the cache lines of a tile that is read later, as many as a step of the logits fetches.
  void LookAhead(const GatheredTokens& tile) {
    constexpr size_t kLine = 64 / sizeof(uint16_t);
    size_t lines = 0;
    const auto list = [&](const uint16_t* token, size_t pitch, size_t size) {
      for (size_t j = 0; j < tile.count; ++j, token += pitch) {
        for (size_t i = 0; i < size && lines < shape_.dim; i += kLine) ahead_[lines++] = token + i;
      }
    };
    list(tile.key, shape_.key_pitch, shape_.dim);
    list(tile.value, shape_.value_pitch, shape_.value_dim);
    while (lines < shape_.dim) ahead_[lines++] = tile.key;
  }

  HWY_NOINLINE void TakeKeys(const GatheredTokens& tile, float* to) {
    for (size_t j = 0; j < tile.count; ++j) {
      Convert<T>(tile.key + j * shape_.key_pitch, shape_.dim, key_ + j * kKeyPitch);
      if (!along_dim_) continue;
      // The heads are too few for their work to hide that more is read: fetch it now.
      const size_t lines = shape_.dim / kGatherTokens;
      for (size_t i = 0; i < lines; ++i) PrefetchToSecondLevel(ahead_[j * lines + i]);
    }
    if (along_dim_) {
      for (size_t j = 0; j < tile.count; j += 8) {
        for (size_t h = 0; h < shape_.group; ++h) {
          LogitsOfHead(query_ + h * shape_.dim, key_ + j * kKeyPitch, shape_.dim,
                       to + j * pitch_ + h, pitch_);
        }
      }
      return;
    }
    size_t v = 0;
    for (; v + 4 <= vectors_; v += 4) TakeHeads<4>(v, tile.count, to);
    for (; v + 2 <= vectors_; v += 2) TakeHeads<2>(v, tile.count, to);
    if (v < vectors_) TakeHeads<1>(v, tile.count, to);
  }

  // Beyond `tokens` there is room in `key_` and `to`.
  template <int kVectors>
  HWY_INLINE void TakeHeads(size_t vector, size_t tokens, float* to) {
    constexpr int kTokens = kSums / kVectors;
    const size_t lanes = hn::Lanes(DF());
    const float* const query = query_ + vector * shape_.dim * lanes;
    for (size_t j = 0; j < tokens; j += kTokens) {
      Logits<kTokens, kVectors>(query, key_ + j * kKeyPitch, shape_.dim,
                                to + j * pitch_ + vector * lanes, pitch_, ahead_);
    }
  }

  // Logits become weights.
  HWY_NOINLINE void TakeWeights(size_t tokens, float scale_value) {
    const DF df;
    const VF scale = hn::Set(df, scale_value);
    for (size_t h = 0; h < pitch_; h += hn::Lanes(df)) {
      float* const logits = logits_ + h;
      const VF old_max = hn::LoadU(df, max_ + h);
      VF max = old_max;
      for (size_t j = 0; j < tokens; ++j) {
        const VF logit = hn::Mul(hn::LoadU(df, logits + j * pitch_), scale);
        hn::StoreU(logit, df, logits + j * pitch_);
        max = hn::IfThenElse(hn::Gt(logit, max), logit, max);
      }
      const VF before = Exp(hn::Sub(old_max, max));
      VF total = hn::Mul(hn::LoadU(df, total_ + h), before);
      for (size_t j = 0; j < tokens; ++j) {
        const VF weight = Exp(hn::Sub(hn::LoadU(df, logits + j * pitch_), max));
        hn::StoreU(weight, df, logits + j * pitch_);
        total = hn::Add(total, weight);
      }
      hn::StoreU(max, df, max_ + h);
      hn::StoreU(before, df, before_ + h);
      hn::StoreU(total, df, total_ + h);
    }
  }

  template <int kVectors>
  HWY_NOINLINE void TakeValues(size_t vector, size_t tiles, size_t tokens) {
    const size_t width = kVectors * hn::Lanes(DF()), first = vector * hn::Lanes(DF());
    float* to = values_;
    for (size_t i = 0; i < tiles; ++i) {
      const uint16_t* value = chunk_[i].value + first;
      for (size_t j = 0; j < chunk_[i].count; ++j, value += shape_.value_pitch, to += width) {
        Convert<T>(value, width, to);
      }
    }
    const size_t sums_pitch = shape_.value_dim;
    float* sums = sums_ + first;
    size_t h = 0;
    for (; h + 4 <= shape_.group; h += 4) {
      AddValues<4, kVectors>(before_ + h, logits_ + h, pitch_, values_, width, tokens,
                             sums + h * sums_pitch, sums_pitch);
    }
    for (; h < shape_.group; ++h) {
      AddValues<1, kVectors>(before_ + h, logits_ + h, pitch_, values_, width, tokens,
                             sums + h * sums_pitch, sums_pitch);
    }
  }

  const GatherShape shape_;
  size_t vectors_;  // of heads
  size_t pitch_;    // heads, rounded up to whole vectors
  bool along_dim_;  // lanes are elements of D, not heads
  float* query_;    // [vectors, dim, lanes], or [group, dim]
  float* key_;      // [kGatherTokens, kKeyPitch]
  float* logits_;   // [kGatherChunk, pitch]
  float* values_;   // [kGatherChunk, width of a step]
  float* sums_;     // [group, value_dim]
  float* max_;      // [pitch] and so on
  float* total_;
  float* before_;
  GatheredTokens chunk_[kGatherTiles + 1];  // the last one is of the next chunk
  const uint16_t* ahead_[kMostDim];
  size_t tiles_ = 0;
};

}  // namespace nsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // the toggle
