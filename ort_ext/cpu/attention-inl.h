// The arithmetic of the CPU kernels of the attention stages: softmax(scale * Q x K) x V for some
// query heads of one key/value head. Compiled once per instruction set, in each source that
// includes it.
//
//   Exp(x)                          e^x of a vector
//   AttentionTile<T> tile(...)      T: SimdFloat16 or SimdBFloat16
//     PackQueries                   the queries, as columns
//     Logits                        of some keys: [keys, columns] in float32
//     TakeMost                      the greatest so far, per column
//     TakeExponentials              logits become e^(logit - greatest), and are added up
//     AddValues                     the weighted sum of these keys' values
//     StoreColumn                   one query head's result, rounded once
//
// A column is one head of one query: the columns of a tile share their keys and values, so that
// each of these is loaded and converted once for all of them. They are what a vector's lanes are:
// the greatest logit, the sum, the exponential need nothing across lanes, and a key is read as it
// lies. Each number is computed in the order of the keys, whatever the tiles are.
#if defined(NSA_ONNX_ORT_EXT_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NSA_ONNX_ORT_EXT_CPU_ATTENTION_INL_H_
#undef NSA_ONNX_ORT_EXT_CPU_ATTENTION_INL_H_
#else
#define NSA_ONNX_ORT_EXT_CPU_ATTENTION_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/attention.h"
#include "cpu/multiply-inl.h"
#include "cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nsa::cpu::HWY_NAMESPACE {

// e^x for x <= 0, -infinity and NaN; relative error below 2^-22.
HWY_INLINE VF Exp(VF x) {
  const DF df;
  // x = n * ln 2 + r, |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer, which then is the
  // low bits. ln 2 is two numbers, of which the first times n is exact.
  const VF magic = hn::Set(df, 0x1.8p23f);
  const auto vanishes = hn::Lt(x, hn::Set(df, -110.0f));  // below half of the least subnormal
  const VF kept = hn::IfThenElse(vanishes, hn::Set(df, -110.0f), x);
  const VF shifted = hn::MulAdd(kept, hn::Set(df, 0x1.715476p0f), magic);
  const VF n = hn::Sub(shifted, magic);
  const VF r = hn::NegMulAdd(n, hn::Set(df, -0x1.bd0106p-13f),
                             hn::NegMulAdd(n, hn::Set(df, 0x1.63p-1f), kept));
  // The series up to r^7 / 7!: what is left out is below 2^-27.
  VF p = hn::Set(df, 1.0f / 5040);
  p = hn::MulAdd(p, r, hn::Set(df, 1.0f / 720));
  p = hn::MulAdd(p, r, hn::Set(df, 1.0f / 120));
  p = hn::MulAdd(p, r, hn::Set(df, 1.0f / 24));
  p = hn::MulAdd(p, r, hn::Set(df, 1.0f / 6));
  p = hn::MulAdd(p, r, hn::Set(df, 0.5f));
  p = hn::MulAdd(p, r, hn::Set(df, 1.0f));
  p = hn::MulAdd(p, r, hn::Set(df, 1.0f));
  // Times 2^n in two halves, so that a subnormal result is rounded once. Of NaN, n is anything.
  using DInt = hn::Rebind<int32_t, DF>;
  const DInt di;
  const auto exponent = hn::Sub(hn::BitCast(di, shifted), hn::BitCast(di, magic));
  const auto half = hn::ShiftRight<1>(exponent), bias = hn::Set(di, 127);
  const VF first = hn::BitCast(df, hn::ShiftLeft<23>(hn::Add(half, bias)));
  const VF second = hn::BitCast(df, hn::ShiftLeft<23>(hn::Add(hn::Sub(exponent, half), bias)));
  const VF result = hn::IfThenZeroElse(vanishes, hn::Mul(hn::Mul(p, first), second));
  return hn::IfThenElse(hn::IsNaN(x), x, result);
}

// 16-bit elements to float32; `size` is a multiple of 16.
template <class T>
HWY_INLINE void Convert(const uint16_t* from, size_t size, float* to) {
  const size_t lanes = hn::Lanes(DF());
  for (size_t i = 0; i < size; i += lanes) hn::StoreU(T::Load(from + i), DF(), to + i);
}

// sums[j] += the sum over h of weights[j, h] * factors[h], for `tokens` rows j, `pitch` apart. The
// order depends on the number of heads and the instruction set.
HWY_INLINE void AddHeads(const float* weights, size_t pitch, size_t tokens, const float* factors,
                         size_t heads, float* sums) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  if (heads % lanes == 0) {
    for (size_t j = 0; j < tokens; ++j, weights += pitch) {
      VF sum = hn::Mul(hn::LoadU(df, weights), hn::LoadU(df, factors));
      for (size_t h = lanes; h < heads; h += lanes) {
        sum = hn::MulAdd(hn::LoadU(df, weights + h), hn::LoadU(df, factors + h), sum);
      }
      sums[j] += hn::ReduceSum(df, sum);
    }
    return;
  }
  for (size_t j = 0; j < tokens; ++j, weights += pitch) {
    float sum = 0;
    for (size_t h = 0; h < heads; ++h) sum += weights[h] * factors[h];
    sums[j] += sum;
  }
}

// Some columns and what is computed of them. See the beginning of the file, and TileSize.
template <class T>
class AttentionTile {
 public:
  // `scratch`: TileFloats(size), from a whole cache line on.
  AttentionTile(const TileSize& size, float* scratch)
      : width_(size.width),
        dim_(size.dim),
        value_dim_(size.value_dim),
        queries_(scratch),
        tokens_(queries_ + width_ * dim_),
        result_(tokens_ + kTileTokens * dim_),
        most_(result_ + width_ * value_dim_),
        sums_(most_ + width_) {}

  // Column c is head c % heads of query c / heads; these are `pitch` elements apart, heads are
  // neighbours. What is left of the width is zero. Begin must follow.
  void PackQueries(const uint16_t* first, size_t heads, size_t pitch, size_t columns) {
    // Sixteen columns at a time, over the memory of the tokens: it is transposed in the cache.
    for (size_t begin = 0; begin < width_; begin += kTileColumns) {
      for (size_t i = 0; i < kTileColumns; ++i) {
        const size_t c = begin + i;
        float* const row = tokens_ + i * dim_;
        if (c < columns) {
          Convert<T>(first + c / heads * pitch + c % heads * dim_, dim_, row);
        } else {
          std::fill(row, row + dim_, 0.0f);
        }
      }
      for (size_t d = 0; d < dim_; ++d) {
        float* const to = queries_ + d * width_ + begin;
        for (size_t i = 0; i < kTileColumns; ++i) to[i] = tokens_[i * dim_ + d];
      }
    }
  }

  // Begins anew, with the same queries.
  void Begin() {
    std::fill(most_, most_ + width_, kHidden);
    std::fill(sums_, sums_ + width_, 0.0f);
    begins_ = true;
  }

  // Of keys first .. first + count - 1, at most kTileTokens, to [count, width]; up to seven rows
  // more are overwritten. The keys from there to `end` are asked for next: those of one tile are
  // fetched meanwhile.
  void Logits(const Tokens& keys, size_t first, size_t count, size_t end, float scale,
              float* logits) {
    // All keys at once serve many columns best, since a step's queries then stay in the first-level
    // cache. With few columns all of these do, and memory is busy all the time.
    const size_t most = width_ > kFewColumns ? kTileTokens : kTileRows;
    for (size_t j = 0; j < count; j += most) {
      const size_t tokens = std::min(most, count - j), rows = RoundUp(tokens, kTileRows);
      ConvertTokens(keys, first + j, tokens, dim_);
      const size_t next = first + j + kTileTokens;
      Fetcher fetcher(keys, next, std::min(next + tokens, end), dim_,
                      FetchCalls(rows, width_, dim_));
      std::fill(tokens_ + tokens * dim_, tokens_ + rows * dim_, 0.0f);
      Multiply<Float32, float>({tokens_, dim_, 1, queries_, width_, logits + j * width_, width_,
                                rows, width_, dim_, scale, true, &fetcher});
    }
  }

  // The greatest of these logits and of all before, kHidden at least. NaN may count or not: it will
  // spread through the sum.
  void TakeMost(const float* logits, size_t count) {
    const DF df;
    for (size_t c = 0; c < width_; c += hn::Lanes(df)) {
      VF most = hn::LoadU(df, most_ + c);
      for (size_t j = 0; j < count; ++j) {
        most = hn::Max(most, hn::LoadU(df, logits + j * width_ + c));
      }
      hn::StoreU(most, df, most_ + c);
    }
  }

  // After all logits have been seen: in place.
  void TakeExponentials(float* logits, size_t count) {
    const DF df;
    for (size_t c = 0; c < width_; c += hn::Lanes(df)) {
      const VF most = hn::LoadU(df, most_ + c);
      VF sum = hn::LoadU(df, sums_ + c);
      for (size_t j = 0; j < count; ++j) {
        float* const at = logits + j * width_ + c;
        const VF e = Exp(hn::Sub(hn::LoadU(df, at), most));
        sum = hn::Add(sum, e);
        hn::StoreU(e, df, at);
      }
      hn::StoreU(sum, df, sums_ + c);
    }
  }

  // Adds values first .. first + count - 1, at most kTileTokens, times weights[count, width].
  // Fetches as Logits does.
  void AddValues(const Tokens& values, size_t first, size_t count, size_t end,
                 const float* weights) {
    const size_t next = first + kTileTokens;
    Fetcher fetcher(values, next, std::min(next + count, end), value_dim_,
                    FetchCalls(width_, value_dim_, count));
    if (width_ > kFewColumns) {
      ConvertTokens(values, first, count, value_dim_);
      AddProduct<Float32>(tokens_, value_dim_, count, weights, &fetcher);
      return;
    }
    // Few columns: to convert a value wherever it is used costs less than to store it converted.
    for (size_t j = 0; j < count;) {
      const size_t tokens = values.Together(first + j, count - j);
      AddProduct<T>(values.At(first + j), values.pitch, tokens, weights + j * width_, &fetcher);
      j += tokens;
    }
  }

  // Column c of the result over its sum, in the output's type.
  void StoreColumn(size_t c, uint16_t* output) const {
    const DF df;
    const VF factor = hn::Set(df, 1.0f / sums_[c]);
    const float* const row = result_ + c * value_dim_;
    for (size_t d = 0; d < value_dim_; d += hn::Lanes(df)) {
      hn::StoreU(T::Narrow(hn::Mul(hn::LoadU(df, row + d), factor)), DH(), output + d);
    }
  }

  size_t width() const { return width_; }
  float* most() { return most_; }      // [width]: of the logits
  float* sums() { return sums_; }      // [width]: of the exponentials
  float* result() { return result_; }  // [width, value_dim]: before it is divided by the sum

 private:
  static constexpr size_t kFewColumns = 32;

  template <class Right, class Element>
  void AddProduct(const Element* values, size_t pitch, size_t count, const float* weights,
                  Fetcher* fetcher) {
    Multiply<Right, Element>({weights, 1, width_, values, pitch, result_, value_dim_, width_,
                              value_dim_, count, 1.0f, begins_, fetcher});
    begins_ = false;
  }

  void ConvertTokens(const Tokens& tokens, size_t first, size_t count, size_t dim) {
    for (size_t j = 0; j < count;) {
      const uint16_t* from = tokens.At(first + j);
      const size_t end = j + tokens.Together(first + j, count - j);
      for (; j < end; ++j, from += tokens.pitch) Convert<T>(from, dim, tokens_ + j * dim);
    }
  }

  size_t width_, dim_, value_dim_;
  float* queries_;  // [dim, width]
  float* tokens_;   // [kTileTokens, dim], or values in its place
  float* result_;
  float* most_;
  float* sums_;
  bool begins_ = true;
};

}  // namespace nsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // the toggle
