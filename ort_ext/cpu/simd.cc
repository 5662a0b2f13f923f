// The kernel: one algorithm over Google Highway, compiled once per instruction set.
//
// An output row is a weighted sum of `block` tokens, and a token belongs to ceil(block / stride)
// rows, so reading a token once is the least that memory has to do. Per element of 2 bytes that is
// one conversion and ceil(block / stride) multiply-adds in float32: 2 at 32/16, which a core does
// at several times the speed of memory, 8 at 128/16, which is about as much as it can. Hence:
//
//   Prefill walks a run's tokens in the order of memory, in chunks of `stride` tokens. A window is
//   as old as the chunks since it began: 0 to ages - 1. All that cover a chunk take it in one pass,
//   so that each element is read and converted once. A step keeps the sums of these windows for a
//   few neighbouring vectors in registers and takes every token of the chunk into them; between
//   chunks the sums wait in the first-level cache. The pass that ends a chunk stores each sum one
//   place further, as that of a window one chunk older; the oldest goes to the output instead.
//
//   A step goes down the tokens, which no hardware foresees. While it works on one chunk it
//   fetches the next one, into the second-level cache, and in the order of memory, which is what
//   memory is fastest at.
//
//   Decode takes the page runs of a window through the same step, for that window alone.
//
// The order of additions, j = 0, 1, 2, ..., is the contract's and the same in every instruction
// set.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/simd.cc"
#include "cpu/simd.h"

#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cpu/float16.h"
#include "cpu/float_environment.h"
#include "cpu/kernels.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace nsa::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes, on vectors of any length: D is a multiple of 16, so there is never a remainder.
using DF = hn::CappedTag<float, 16>;
using DU = hn::Rebind<uint32_t, DF>;
using DH = hn::Rebind<uint16_t, DF>;
using DPair = hn::Repartition<uint16_t, DF>;  // as many bytes: the elements of two vectors
using VF = hn::Vec<DF>;

// One NaN for all: its payload and sign would differ between instruction sets.
HWY_INLINE VF OneNaN(VF v) {
  return hn::IfThenElse(hn::IsNaN(v), hn::BitCast(DF(), hn::Set(DU(), 0x7FC00000u)), v);
}

// Before F16C, x86 has no instruction for float16, and Highway's stand-ins are not exact.
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2
using DI = hn::Rebind<int32_t, DF>;

HWY_INLINE VF PromoteFloat16(const uint16_t* from) {
  const auto bits = hn::PromoteTo(DU(), hn::LoadU(DH(), from));
  const auto magnitude = hn::And(bits, hn::Set(DU(), 0x7FFF));
  const auto sign = hn::ShiftLeft<16>(hn::Xor(bits, magnitude));
  // In its new place the exponent is 112 too low; a subnormal is one of float32 and is scaled up.
  const VF low = hn::BitCast(DF(), hn::ShiftLeft<13>(magnitude));
  const auto scaled = hn::BitCast(DU(), hn::Mul(low, hn::Set(DF(), 0x1p112f)));
  const auto special = hn::Gt(hn::BitCast(DI(), magnitude), hn::Set(DI(), 0x7BFF));
  const auto ones = hn::IfThenElseZero(hn::RebindMask(DU(), special), hn::Set(DU(), 0x7F800000));
  return hn::BitCast(DF(), hn::Or(hn::Or(scaled, ones), sign));
}

HWY_INLINE hn::Vec<DH> DemoteFloat16(VF v) {
  const auto bits = hn::BitCast(DU(), v);
  const auto magnitude = hn::And(bits, hn::Set(DU(), 0x7FFFFFFF));
  const auto sign = hn::ShiftRight<16>(hn::Xor(bits, magnitude));
  // Normal: round 13 bits away, lower the exponent by 112; all above the largest is infinity.
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(DU(), 1));
  const auto rounded = hn::Add(magnitude, hn::Add(odd, hn::Set(DU(), 0xFFF)));
  const auto lowered = hn::Sub(hn::ShiftRight<13>(rounded), hn::Set(DU(), 112u << 10));
  const auto normal = hn::Min(lowered, hn::Set(DU(), 0x7C00));
  // Subnormal: the last place of 0.5 is 2^-24, the unit of float16's subnormals.
  const VF half = hn::Set(DF(), 0.5f);
  const VF aligned = hn::Add(hn::BitCast(DF(), magnitude), half);
  const auto subnormal = hn::Sub(hn::BitCast(DU(), aligned), hn::BitCast(DU(), half));
  const auto small = hn::Lt(hn::BitCast(DF(), magnitude), hn::Set(DF(), 0x1p-14f));
  auto result = hn::Or(hn::IfThenElse(hn::RebindMask(DU(), small), subnormal, normal), sign);
  const auto nan = hn::RebindMask(DU(), hn::IsNaN(v));
  result = hn::IfThenElse(nan, hn::Set(DU(), Float16::kNaN), result);
  return hn::TruncateTo(DH(), result);
}
#else
using DHalf = hn::Rebind<hwy::float16_t, DF>;

HWY_INLINE VF PromoteFloat16(const uint16_t* from) {
  return hn::PromoteTo(DF(), hn::BitCast(DHalf(), hn::LoadU(DH(), from)));
}

HWY_INLINE hn::Vec<DH> DemoteFloat16(VF v) {
  return hn::BitCast(DH(), hn::DemoteTo(DHalf(), OneNaN(v)));
}
#endif

// Sums that a step keeps in registers; an element, a weight and the compiler need the rest.
#if HWY_ARCH_ARM_A64 || (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3)
constexpr int kSums = 16;  // of 32
#else
constexpr int kSums = 8;  // of 16
#endif

struct SimdFloat16 : Float16 {
  static constexpr bool kInPairs = false;
  static HWY_INLINE VF Load(const uint16_t* from) { return PromoteFloat16(from); }
  static HWY_INLINE hn::Vec<DH> Narrow(VF v) { return DemoteFloat16(v); }
  // |x * w| is 0 or in [2^-48, 2^32]: exact in float32, so that fused and unfused agree.
  static HWY_INLINE VF Add(VF sum, VF x, VF w) { return hn::MulAdd(x, w, sum); }
};

struct SimdBFloat16 : BFloat16 {
  // Two vectors that are neighbours are loaded as one of words, whose upper and lower halves need
  // one instruction each to become float32: the odd and the even elements. All steps must do so
  // with the same vectors, and where registers are few, some take only one.
  static constexpr bool kInPairs = kSums >= 2 * kMostWindows;

  template <bool kOdd>
  static HWY_INLINE VF LoadOfPair(const uint16_t* from) {
    const auto words = hn::BitCast(DU(), hn::LoadU(DPair(), from));
    if constexpr (kOdd) return hn::BitCast(DF(), hn::And(words, hn::Set(DU(), 0xFFFF0000u)));
    return hn::BitCast(DF(), hn::ShiftLeft<16>(words));
  }
  static HWY_INLINE hn::Vec<DPair> NarrowPair(VF even, VF odd) {
    const auto upper = hn::And(Rounded(odd), hn::Set(DU(), 0xFFFF0000u));
    return hn::BitCast(DPair(), hn::Or(hn::ShiftRight<16>(Rounded(even)), upper));
  }
  static HWY_INLINE VF Load(const uint16_t* from) {
    return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(DU(), hn::LoadU(DH(), from))));
  }
  // In integers: the instructions for this flush subnormals on some machines and truncate on
  // others.
  static HWY_INLINE hn::Vec<DU> Rounded(VF v) {
    const auto bits = hn::BitCast(DU(), OneNaN(v));
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(DU(), 1));
    return hn::Add(bits, hn::Add(odd, hn::Set(DU(), 0x7FFF)));
  }
  static HWY_INLINE hn::Vec<DH> Narrow(VF v) {
    return hn::TruncateTo(DH(), hn::ShiftRight<16>(Rounded(v)));
  }
  // The product may overflow or become subnormal, where fused and unfused differ: two steps.
  static HWY_INLINE VF Add(VF sum, VF x, VF w) { return hn::Add(sum, hn::Mul(x, w)); }
};

// For products that are known to be exact (see Exponents).
struct SimdBFloat16Exact : SimdBFloat16 {
  static HWY_INLINE VF Add(VF sum, VF x, VF w) { return hn::MulAdd(x, w, sum); }
};

static_assert(kSums >= kMostWindows);

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

// To memory, past the caches if asked, where the vector is aligned and whole: Highway would round
// its size up.
template <class D>
HWY_INLINE void Write(D d, hn::Vec<D> v, uint16_t* to, bool streams) {
  const size_t bytes = hn::Lanes(d) * sizeof(uint16_t);
  if (streams && bytes >= 16 && reinterpret_cast<uintptr_t>(to) % bytes == 0) {
    hn::Stream(v, d, to);
  } else {
    hn::StoreU(v, d, to);
  }
}

// SVE's vectors cannot be elements of an array: sixteen names stand for one of sums, eight for one
// of a token's vectors.
#define NSA_EACH_SUM(M) NSA_EACH_VECTOR(M) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)
#define NSA_EACH_VECTOR(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define NSA_EACH_PAIR(M) M(0, 1) M(2, 3) M(4, 5) M(6, 7) M(8, 9) M(10, 11) M(12, 13) M(14, 15)

template <int kIndex>
HWY_INLINE VF Pick(VF v0, VF v1, VF v2, VF v3, VF v4, VF v5, VF v6, VF v7) {
  if constexpr (kIndex == 0) return v0;
  if constexpr (kIndex == 1) return v1;
  if constexpr (kIndex == 2) return v2;
  if constexpr (kIndex == 3) return v3;
  if constexpr (kIndex == 4) return v4;
  if constexpr (kIndex == 5) return v5;
  if constexpr (kIndex == 6) return v6;
  if constexpr (kIndex == 7) return v7;
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
    const auto load = [&](auto index) HWY_ATTR {
      constexpr int i = decltype(index)::value < kVectors ? decltype(index)::value : 0;
      if constexpr (kPairs) return T::template LoadOfPair<i % 2 == 1>(token + (i - i % 2) * lanes);
      if constexpr (!kPairs) return T::Load(token + i * lanes);
    };
#define NSA_X(i) const VF x##i = load(std::integral_constant<int, i>());
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

// Scratch memory is used from the first whole cache line on (see ScratchSize).
HWY_INLINE float* AlignedToLine(float* scratch) {
  const size_t past = reinterpret_cast<uintptr_t>(scratch) / sizeof(float) % kLineFloats;
  return scratch + (past == 0 ? 0 : kLineFloats - past);
}

// The range of some float patterns' exponents, zeros left out. bfloat16 has float32's exponent; the
// product of two such numbers has 16 significant bits and is exact in float32 unless it leaves its
// range, and where it is exact, one fused step is the same as multiply, then add.
struct Exponents {
  int least = 255;
  int greatest = 0;

  // At least 2^-126: 2^(e - 127) is the least number of exponent e. Below 2^128: 2^(e - 126) is
  // above the greatest. Infinities and NaNs, e = 255, count as too great.
  static bool ProductsAreExact(const Exponents& a, const Exponents& b) {
    return a.least + b.least >= 128 && a.greatest + b.greatest <= 380 && a.greatest < 255 &&
           b.greatest < 255;
  }
};

// Of bfloat16 patterns: `rows` of `size`, a multiple of 16, `pitch` apart.
HWY_INLINE Exponents ExponentsOf(const uint16_t* from, size_t pitch, size_t rows, size_t size) {
  const hn::CappedTag<uint16_t, 16> du;
  const auto magnitude = hn::Set(du, 0x7FFF), one = hn::Set(du, 1);
  auto greatest = hn::Zero(du), least = hn::Set(du, 0xFFFF);
  for (size_t row = 0; row < rows; ++row, from += pitch) {
    for (size_t i = 0; i < size; i += hn::Lanes(du)) {
      const auto v = hn::And(hn::LoadU(du, from + i), magnitude);
      greatest = hn::Max(greatest, v);
      least = hn::Min(least, hn::Sub(v, one));  // makes zero the greatest
    }
  }
  const int exponent_bits = 7;
  return {(hn::ReduceMin(du, least) + 1) >> exponent_bits,
          hn::ReduceMax(du, greatest) >> exponent_bits};
}

// More than this ahead, the second-level cache could lose what was fetched before its turn comes.
constexpr size_t kMostAhead = (size_t{128} << 10) / sizeof(uint16_t);

// An output of so many bytes is written past the caches: whoever reads it next would hardly find
// its beginning there, and a cache reads every line from memory that is written to.
constexpr int64_t kStreamedBytes = int64_t{2} << 20;

// For fewer windows, looking at the exponents costs more than a fused step saves.
constexpr size_t kWindowsWorthLooking = 3;

// Walk for 1 to kMostWindows windows.
template <class T>
HWY_INLINE const decltype(&Walk<T, 1>)* Passes() {
  static constexpr decltype(&Walk<T, 1>) passes[] = {Walk<T, 1>, Walk<T, 2>, Walk<T, 3>,
                                                     Walk<T, 4>, Walk<T, 5>, Walk<T, 6>,
                                                     Walk<T, 7>, Walk<T, 8>};
  static_assert(sizeof passes / sizeof *passes == kMostWindows);
  return passes;
}

template <class T>
class Prefill {
 public:
  Prefill(const CompressData& data, float* scratch)
      : input_(data.input),
        output_(data.output),
        heads_(static_cast<size_t>(data.heads)),
        dim_(static_cast<size_t>(data.dim)),
        stride_(static_cast<size_t>(data.stride)),
        ages_(OverlappingWindows(data)),
        last_tokens_(static_cast<size_t>(data.block) - (ages_ - 1) * stride_),
        pitch_(heads_ * dim_),
        part_tokens_(PartTokens()),
        tile_heads_(std::min(heads_, std::max<size_t>(1, kMostAhead / (part_tokens_ * dim_)))),
        streams_(Streams(data)),
        sums_(AlignedToLine(scratch)),
        weights_(sums_ + pitch_ * ages_) {
    for (size_t j = 0; j < static_cast<size_t>(data.block); ++j) {
      for (size_t n = 0; n < heads_; ++n) {
        weights_[(j % stride_ * heads_ + n) * ages_ + j / stride_] =
            T::ToFloat(data.weight[j * heads_ + n]);
        const int exponent = data.weight[j * heads_ + n] >> 7 & 255;
        if (data.weight[j * heads_ + n] << 1 & 0xFFFF) {
          weight_exponents_.least = std::min(weight_exponents_.least, exponent);
        }
        weight_exponents_.greatest = std::max(weight_exponents_.greatest, exponent);
      }
    }
  }

  bool streams() const { return streams_; }

  // `rows` windows from token `token` on, into output rows from `row` on. What will be asked for
  // next begins at `next`.
  void Run(size_t token, size_t row, size_t rows, const uint16_t* next) {
    const size_t chunks = rows + ages_ - 1;
    const uint16_t* chunk = input_ + token * pitch_;
    for (size_t c = 0; c < chunks; ++c) {
      const uint16_t* after = c + 1 < chunks ? chunk + stride_ * pitch_ : next;
      const size_t youngest = c < rows ? 0 : c - rows + 1;
      const size_t oldest = std::min(c, ages_ - 1);
      Chunk(chunk, youngest, oldest, output_ + (row + c - oldest) * pitch_, after);
      chunk = after;
    }
  }

 private:
  static bool Streams(const CompressData& data) {
    const RowRun& last = data.runs[data.run_count - 1];
    const int64_t bytes =
        (last.first_row + last.rows) * data.heads * data.dim * int64_t{sizeof(uint16_t)};
    return bytes >= kStreamedBytes;
  }

  // The most tokens of a chunk, halved as often as it takes, that are not too much to fetch ahead.
  size_t PartTokens() const {
    size_t tokens = stride_;
    while (tokens % 32 == 0 && tokens * pitch_ > kMostAhead) tokens /= 2;
    return tokens;
  }

  // One chunk, for the windows that began `youngest` to `oldest` chunks ago. What of a window's
  // last chunk is not its own may not be memory at all, if no younger window reads it.
  void Chunk(const uint16_t* chunk, size_t youngest, size_t oldest, uint16_t* done,
             const uint16_t* next) {
    for (size_t begin = 0, end = 0; begin < stride_; begin = end) {
      end = std::min(begin + part_tokens_, stride_);
      size_t windows = oldest - youngest + 1;
      bool closes = false;
      if (oldest + 1 == ages_) {
        if (begin < last_tokens_) {
          end = std::min(end, last_tokens_);
          closes = end == last_tokens_;
        } else if (--windows == 0) {
          return;
        }
      }
      const uint16_t* token = chunk + begin * pitch_;
      Part(token, begin, end, youngest, windows, closes ? done : nullptr,
           end < stride_ ? chunk + end * pitch_ : next);
    }
  }

  void Part(const uint16_t* token, size_t begin, size_t end, size_t youngest, size_t windows,
            uint16_t* output, const uint16_t* next) {
    const size_t lanes = hn::Lanes(DF());
    for (size_t n = 0; n < heads_; n += tile_heads_) {
      const bool last = n + tile_heads_ >= heads_;
      float* const sums = sums_ + n * dim_ * ages_ + youngest * lanes;
      Tile tile;
      tile.token = token + n * dim_;
      tile.pitch = pitch_;
      tile.tokens = end - begin;
      tile.weight = weights_ + (begin * heads_ + n) * ages_ + youngest;
      tile.weight_pitch = heads_ * ages_;
      tile.head_pitch = ages_;
      tile.ahead = last ? next : tile.token + tile_heads_ * dim_;
      tile.ahead_in_order = tile_heads_ == heads_;
      tile.sums = sums;
      tile.results = end == stride_ ? sums + lanes : sums;  // with the next chunk all are older
      tile.sums_pitch = ages_ * lanes;
      tile.begins = begin == 0 && youngest == 0;
      tile.output = output == nullptr ? nullptr : output + n * dim_;
      tile.streams = streams_;
      WalkAll(tile, windows, last ? heads_ - n : tile_heads_);
    }
  }

  void WalkAll(Tile& tile, size_t windows, size_t heads) const {
    const size_t vectors = dim_ / hn::Lanes(DF());
    if constexpr (std::is_same_v<T, SimdBFloat16>) {
      if (windows >= kWindowsWorthLooking) {
        const Exponents exponents = ExponentsOf(tile.token, pitch_, tile.tokens, heads * dim_);
        if (Exponents::ProductsAreExact(exponents, weight_exponents_)) {
          Passes<SimdBFloat16Exact>()[windows - 1](tile, heads, vectors);
          return;
        }
      }
    }
    Passes<T>()[windows - 1](tile, heads, vectors);
  }

  const uint16_t* input_;
  uint16_t* output_;
  size_t heads_, dim_, stride_;
  size_t ages_;         // windows that cover a chunk
  size_t last_tokens_;  // of a window's last chunk
  size_t pitch_;        // elements of a token
  size_t part_tokens_;  // of a chunk that are taken at once
  size_t tile_heads_;   // and heads of them
  bool streams_;
  Exponents weight_exponents_;
  float* sums_;     // [heads * dim / lanes, ages, lanes]
  float* weights_;  // [stride, heads, ages]
};

template <class T>
void Compress(const CompressData& data, int64_t first, int64_t last, float* scratch) {
  const FloatEnvironment environment;
  Prefill<T> prefill(data, scratch);
  const int64_t pitch = data.heads * data.dim;
  for (int64_t i = 0; i < data.run_count; ++i) {
    const RowRun& run = data.runs[i];
    const int64_t begin = std::max(first, run.first_row);
    const int64_t end = std::min(last, run.first_row + run.rows);
    if (begin >= end) continue;
    const int64_t token = run.first_token + (begin - run.first_row) * data.stride;
    const int64_t next = i + 1 < data.run_count ? data.runs[i + 1].first_token : token;
    prefill.Run(static_cast<size_t>(token), static_cast<size_t>(begin),
                static_cast<size_t>(end - begin), data.input + next * pitch);
  }
  if (prefill.streams()) hwy::FlushStream();
}

template <class T>
void Infer(const InferData& data, int64_t first, int64_t last, float* scratch) {
  const FloatEnvironment environment;
  const size_t lanes = hn::Lanes(DF());
  const size_t heads = static_cast<size_t>(data.heads), dim = static_cast<size_t>(data.dim);
  const size_t pitch = heads * dim;
  float* const sums = AlignedToLine(scratch);
  float* const weights = sums + pitch;
  for (size_t i = 0; i < static_cast<size_t>(data.block) * heads; ++i) {
    weights[i] = T::ToFloat(data.weight[i]);
  }
  const auto token = [&](const PageRun& run) {
    return data.input + static_cast<size_t>(run.page * data.page + run.offset) * pitch;
  };
  for (int64_t unit = first; unit < last;) {
    const int64_t w = unit / data.heads;
    const SlotWrite& write = data.writes[w];
    const size_t n = static_cast<size_t>(unit % data.heads);
    const size_t count = std::min(heads - n, static_cast<size_t>(last - unit));
    const float* weight = weights + n;
    for (int64_t i = 0; i < write.run_count; ++i) {
      const PageRun& run = write.runs[i];
      const uint16_t* next = i + 1 < write.run_count    ? token(write.runs[i + 1])
                             : w + 1 < data.write_count ? token(data.writes[w + 1].runs[0])
                                                        : token(run);
      Tile tile;
      tile.token = token(run) + n * dim;
      tile.pitch = pitch;
      tile.tokens = static_cast<size_t>(run.tokens);
      tile.weight = weight;
      tile.weight_pitch = heads;
      tile.head_pitch = 1;
      tile.ahead = next + n * dim;
      tile.ahead_in_order = false;
      tile.sums = sums;
      tile.results = sums;
      tile.sums_pitch = lanes;
      tile.begins = i == 0;
      tile.output = i + 1 == write.run_count
                        ? data.cache + static_cast<size_t>(write.slot) * pitch + n * dim
                        : nullptr;
      tile.streams = false;
      Walk<T, 1>(tile, count, dim / lanes);
      weight += tile.tokens * heads;
    }
    unit += static_cast<int64_t>(count);
  }
}

// Null if the machine's vectors do not divide D: 384 bits of SVE are 12 lanes.
const Kernels* TargetKernels() {
  static constexpr Kernels kernels = {{Compress<SimdFloat16>, Compress<SimdBFloat16>},
                                      {Infer<SimdFloat16>, Infer<SimdBFloat16>}};
  return spec::kAlignment % static_cast<int64_t>(hn::Lanes(DF())) == 0 ? &kernels : nullptr;
}

}  // namespace nsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsa::cpu {

HWY_EXPORT(TargetKernels);

std::vector<SimdTarget> SimdTargets() {
  std::vector<SimdTarget> targets;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::GetChosenTarget().Update(target);
    const Kernels* kernels = HWY_DYNAMIC_POINTER(TargetKernels)();
    if (kernels != nullptr) targets.push_back({hwy::TargetName(target), kernels});
  }
  return targets;
}

}  // namespace nsa::cpu
#endif  // HWY_ONCE
