// The inner loop of the CPU kernels that compress windows of tokens, which is called a step: for
// each token, some neighbouring vectors are added, times a weight, to the sums of the windows that
// cover it. Compiled once per instruction set, in each source that includes it.
//
// A step keeps these sums in registers. It goes down the tokens, which no hardware foresees; so
// while it works on some tokens it fetches what comes next, into the second-level cache, and in the
// order of memory, which is what memory is fastest at.
//
// A short step takes only four tokens and keeps their weights in registers instead, and the sums in
// the first-level cache. That reads memory nearly in its order, which hardware does foresee.
#if defined(NSA_ONNX_ORT_EXT_CPU_WINDOW_STEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NSA_ONNX_ORT_EXT_CPU_WINDOW_STEP_INL_H_
#undef NSA_ONNX_ORT_EXT_CPU_WINDOW_STEP_INL_H_
#else
#define NSA_ONNX_ORT_EXT_CPU_WINDOW_STEP_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/vectors-inl.h"
#include "cpu/window_step.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace nsa::cpu::HWY_NAMESPACE {

// Vectors of one token that a step takes, given the windows it serves: the power of two that fits.
constexpr int MostVectors(int windows) {
  int vectors = 8;
  while (vectors * windows > kSums) vectors /= 2;
  return vectors;
}

// What a step works on: `tokens` tokens, of which it takes some neighbouring vectors.
struct Tile {
  const uint16_t* token;  // the first vector of the first token
  size_t pitch;           // elements from a token to the next
  size_t tokens;
  const float* weight;    // of the first token, first head, youngest window; windows are neighbours
  size_t weight_pitch;    // from a token to the next
  size_t head_pitch;      // from a head to the next
  const uint16_t* ahead;  // what is read next, fetched while this tile is worked on
  bool ahead_in_order;    // it is all of its tokens: fetch it in the order of memory
  const float*
      sums;  // of the first vector, youngest window: [vectors, sums_pitch], windows are neighbours
  float* results;  // where they go, laid out like them
  size_t sums_pitch;
  bool begins;       // the youngest window starts here, from zero
  uint16_t* output;  // of the first vector, for the oldest window; null if more of it is to come
  bool streams;      // write the output past the caches
};

// Highway's goes to the first-level cache, which the tile at work fills.
HWY_INLINE void PrefetchToSecondLevel(const uint16_t* from) { __builtin_prefetch(from, 0, 2); }

// Loads an element of each page from `from` on, up to `end`. A prefetch brings nothing (on Zen 4)
// while the processor does not know where its page lies, and only a load makes it find out.
HWY_INLINE void TouchPages(const uint16_t* from, const uint16_t* end) {
  constexpr size_t kPage = (size_t{4} << 10) / sizeof(uint16_t);
  for (; from < end; from += std::min<size_t>(kPage, static_cast<size_t>(end - from))) {
    static_cast<void>(*static_cast<const volatile uint16_t*>(from));
  }
}

// To memory, past the caches if asked, where the vector is whole (Highway would round its size up)
// and it or its halves are aligned. A line that is written both ways is slow, so either all vectors
// of an output are aligned, halved or not, or none is.
template <class D>
HWY_INLINE void Write(D d, hn::Vec<D> v, uint16_t* to, bool streams) {
  const size_t bytes = hn::Lanes(d) * sizeof(uint16_t);
  const uintptr_t address = reinterpret_cast<uintptr_t>(to);
  if (streams && bytes >= 16 && address % bytes == 0) {
    hn::Stream(v, d, to);
  } else if (streams && bytes >= 32 && address % (bytes / 2) == 0) {
    const hn::Half<D> half;
    hn::Stream(hn::LowerHalf(half, v), half, to);
    hn::Stream(hn::UpperHalf(half, v), half, to + hn::Lanes(half));
  } else {
    hn::StoreU(v, d, to);
  }
}

// SVE's vectors cannot be elements of an array: sixteen names stand for one of sums, eight for one
// of a token's vectors.
#define NSA_EACH_SUM(M) NSA_EACH_VECTOR(M) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)
#define NSA_EACH_VECTOR(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define NSA_EACH_PAIR(M) M(0, 1) M(2, 3) M(4, 5) M(6, 7) M(8, 9) M(10, 11) M(12, 13) M(14, 15)

template <int kIndex, class... Others>
HWY_INLINE VF Pick(VF first, Others... others) {
  if constexpr (kIndex == 0) return first;
  if constexpr (kIndex > 0) return Pick<kIndex - 1>(others...);
}

// Vector `kIndex` of a token, where a step takes them in pairs or one by one.
template <class T, int kIndex, bool kPairs>
HWY_INLINE VF LoadVector(const uint16_t* token) {
  const size_t lanes = hn::Lanes(DF());
  if constexpr (kPairs) {
    return T::template LoadOfPair<kIndex % 2 == 1>(token + (kIndex - kIndex % 2) * lanes);
  } else {
    return T::Load(token + kIndex * lanes);
  }
}

// kVectors vectors of every token into the sums of kWindows windows. kShare neighbouring vectors
// are of the same head.
template <class T, int kWindows, int kVectors, int kShare>
HWY_INLINE void Step(const Tile& tile) {
  static_assert(kWindows * kVectors <= 16 && kVectors <= 8 && kVectors % kShare == 0);
  constexpr bool kPairs = T::kInPairs && kShare > 1;
  const DF df;
  const size_t lanes = hn::Lanes(df);
  const float* const sums = tile.sums;
  float* const results = tile.results;
  const size_t sums_pitch = tile.sums_pitch, pitch = tile.pitch, weight_pitch = tile.weight_pitch;
  // Sum i is of window i / kVectors, vector i % kVectors.
#define NSA_LOAD(i)                                                                  \
  VF s##i = hn::Zero(df);                                                            \
  if constexpr (i < kWindows * kVectors) {                                           \
    if (i >= kVectors || !tile.begins) {                                             \
      s##i = hn::LoadU(df, sums + i % kVectors * sums_pitch + i / kVectors * lanes); \
    }                                                                                \
  }
  NSA_EACH_SUM(NSA_LOAD);
#undef NSA_LOAD
  const uint16_t* token = tile.token;
  const uint16_t* ahead = tile.ahead;
  const float* weight = tile.weight;
  const size_t head_pitch = tile.head_pitch;
  const size_t ahead_pitch = tile.ahead_in_order ? kVectors * lanes : pitch;
  for (size_t j = 0; j < tile.tokens; ++j) {
    constexpr size_t kLine = 64 / sizeof(uint16_t);
    for (size_t i = 0; i < kVectors * lanes; i += kLine) PrefetchToSecondLevel(ahead + i);
#define NSA_X(i) const VF x##i = LoadVector<T, (i < kVectors ? i : 0), kPairs>(token);
    NSA_EACH_VECTOR(NSA_X);
#undef NSA_X
#define NSA_ADD(i)                                                                       \
  if constexpr (i < kWindows * kVectors) {                                               \
    const VF w = hn::Set(df, weight[i % kVectors / kShare * head_pitch + i / kVectors]); \
    s##i = T::Add(s##i, Pick<i % kVectors>(x0, x1, x2, x3, x4, x5, x6, x7), w);          \
  }
    NSA_EACH_SUM(NSA_ADD);
#undef NSA_ADD
    token += pitch;
    ahead += ahead_pitch;
    weight += weight_pitch;
  }
#define NSA_STORE(i)                                                                    \
  if constexpr (i < kWindows * kVectors) {                                              \
    if (i / kVectors < kWindows - 1 || tile.output == nullptr) {                        \
      hn::StoreU(s##i, df, results + i % kVectors * sums_pitch + i / kVectors * lanes); \
    } else if constexpr (!kPairs) {                                                     \
      Write(DH(), T::Narrow(s##i), tile.output + i % kVectors * lanes, tile.streams);   \
    }                                                                                   \
  }
  NSA_EACH_SUM(NSA_STORE);
#undef NSA_STORE
#define NSA_WRITE_PAIR(i, next)                                       \
  if constexpr (kPairs && i / kVectors == kWindows - 1) {             \
    if (tile.output != nullptr) {                                     \
      uint16_t* const to = tile.output + i % kVectors * lanes;        \
      Write(DPair(), T::NarrowPair(s##i, s##next), to, tile.streams); \
    }                                                                 \
  }
  NSA_EACH_PAIR(NSA_WRITE_PAIR);
#undef NSA_WRITE_PAIR
}

// A step on the tile's first vectors; the tile becomes what is to the right of them.
template <class T, int kWindows, int kVectors, int kShare>
HWY_INLINE void Take(Tile* tile) {
  Step<T, kWindows, kVectors, kShare>(*tile);
  const size_t elements = kVectors * hn::Lanes(DF());
  tile->token += elements;
  tile->ahead += tile->ahead_in_order ? elements * tile->tokens : elements;
  tile->sums += kVectors * tile->sums_pitch;
  tile->results += kVectors * tile->sums_pitch;
  if (tile->output != nullptr) tile->output += elements;
}

// Heads that are narrower than a step, as many as a step takes. Returns how many are left.
template <class T, int kWindows, int kVectors, int kShare>
HWY_INLINE size_t TakeHeads(Tile* tile, size_t heads) {
  constexpr size_t kHeads = kVectors / kShare;
  for (; heads >= kHeads; heads -= kHeads) {
    Take<T, kWindows, kVectors, kShare>(tile);
    tile->weight += kHeads * tile->head_pitch;
  }
  return heads;
}

// All of a tile that is `heads` heads of `vectors` vectors wide.
template <class T, int kWindows>
void Walk(Tile& tile, size_t heads, size_t vectors) {
  constexpr int kMost = MostVectors(kWindows);
  if constexpr (kMost > 1) {
    if (vectors == 1) heads = TakeHeads<T, kWindows, kMost, 1>(&tile, heads);
  }
  if constexpr (kMost > 2) {
    if (vectors == 2) heads = TakeHeads<T, kWindows, kMost, 2>(&tile, heads);
  }
  if constexpr (kMost > 4) {
    if (vectors == 4) heads = TakeHeads<T, kWindows, kMost, 4>(&tile, heads);
  }
  for (; heads > 0; --heads) {
    size_t left = vectors;
    for (; left >= kMost; left -= kMost) Take<T, kWindows, kMost, kMost>(&tile);
    if constexpr (kMost > 2) {
      for (; left >= 2; left -= 2) Take<T, kWindows, 2, 2>(&tile);
    }
    if constexpr (kMost > 1) {
      for (; left > 0; --left) Take<T, kWindows, 1, 1>(&tile);
    }
    tile.weight += tile.head_pitch;
  }
}

// A short step takes kShortTokens tokens, vector by vector. The weights of at most
// kMostShortWindows windows stay in registers meanwhile.
constexpr int kShortTokens = 4;
constexpr int kMostShortWindows = 4;

#define NSA_EACH_FOURTH(M) M(0) M(1) M(2) M(3)
#define NSA_WEIGHTS w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15

// One vector of every token; kIndex and kPairs as for LoadVector. Returns the oldest window's sum,
// which is not stored if it goes to the output.
template <class T, int kWindows, int kIndex, bool kPairs, class... Weights>
HWY_INLINE VF ShortStep(const Tile& tile, Weights... weights) {
  static_assert(kWindows <= kMostShortWindows);
  const DF df;
  const size_t lanes = hn::Lanes(df);
  const float* const sums = tile.sums + kIndex * tile.sums_pitch;
  float* const results = tile.results + kIndex * tile.sums_pitch;
#define NSA_LOAD(i)                                                    \
  VF s##i = hn::Zero(df);                                              \
  if constexpr (i < kWindows) {                                        \
    if (i > 0 || !tile.begins) s##i = hn::LoadU(df, sums + i * lanes); \
  }
  NSA_EACH_FOURTH(NSA_LOAD);
#undef NSA_LOAD
#define NSA_ADD(i) \
  if constexpr (i < kWindows) s##i = T::Add(s##i, x, Pick<kToken * kWindows + i>(weights...));
#define NSA_TAKE(j)                                                               \
  {                                                                               \
    constexpr int kToken = j;                                                     \
    const VF x = LoadVector<T, kIndex, kPairs>(tile.token + kToken * tile.pitch); \
    NSA_ADD(0) NSA_ADD(1) NSA_ADD(2) NSA_ADD(3)                                   \
  }
  NSA_EACH_FOURTH(NSA_TAKE);
#undef NSA_TAKE
#undef NSA_ADD
#define NSA_STORE(i)                                                       \
  if (i < kWindows - 1 || (i == kWindows - 1 && tile.output == nullptr)) { \
    hn::StoreU(s##i, df, results + i * lanes);                             \
  }
  NSA_EACH_FOURTH(NSA_STORE);
#undef NSA_STORE
  return Pick<kWindows - 1>(s0, s1, s2, s3);
}

// Fetches what a short step of kVectors vectors is to fetch, in the order of memory.
template <int kVectors>
HWY_INLINE void FetchAhead(const Tile& tile) {
  constexpr size_t kLine = 64 / sizeof(uint16_t);
  const size_t elements = kVectors * hn::Lanes(DF()) * kShortTokens;
  for (size_t i = 0; i < elements; i += kLine) PrefetchToSecondLevel(tile.ahead + i);
}

// All of a tile of kShortTokens tokens that is `heads` heads of `vectors` vectors wide.
template <class T, int kWindows>
void ShortWalk(Tile& whole, size_t heads, size_t vectors) {
  Tile tile = whole;  // a copy, which no store to the sums can change: it stays in registers
  const DF df;
  const size_t lanes = hn::Lanes(df);
  const auto next = [&](size_t count) HWY_ATTR {
    const size_t elements = count * lanes;
    tile.token += elements;
    tile.ahead += elements * kShortTokens;
    tile.sums += count * tile.sums_pitch;
    tile.results += count * tile.sums_pitch;
    if (tile.output != nullptr) tile.output += elements;
  };
  for (; heads > 0; --heads) {
#define NSA_WEIGHT(i)                                                                 \
  VF w##i = hn::Zero(df);                                                             \
  if constexpr (i < kShortTokens * kWindows) {                                        \
    w##i = hn::Set(df, tile.weight[i / kWindows * tile.weight_pitch + i % kWindows]); \
  }
    NSA_EACH_SUM(NSA_WEIGHT);
#undef NSA_WEIGHT
    size_t left = vectors;
    for (; left >= 2; left -= 2) {
      FetchAhead<2>(tile);
      const VF first = ShortStep<T, kWindows, 0, T::kInPairs>(tile, NSA_WEIGHTS);
      const VF second = ShortStep<T, kWindows, 1, T::kInPairs>(tile, NSA_WEIGHTS);
      if (tile.output != nullptr) {
        if constexpr (T::kInPairs) {
          Write(DPair(), T::NarrowPair(first, second), tile.output, tile.streams);
        } else {
          Write(DH(), T::Narrow(first), tile.output, tile.streams);
          Write(DH(), T::Narrow(second), tile.output + lanes, tile.streams);
        }
      }
      next(2);
    }
    if (left > 0) {
      FetchAhead<1>(tile);
      const VF sum = ShortStep<T, kWindows, 0, false>(tile, NSA_WEIGHTS);
      if (tile.output != nullptr) Write(DH(), T::Narrow(sum), tile.output, tile.streams);
      next(1);
    }
    tile.weight += tile.head_pitch;
  }
}

}  // namespace nsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // the toggle
