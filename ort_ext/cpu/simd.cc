// The kernel: one loop over Google Highway, compiled once per instruction set.
//
// Prefill walks the tokens of a run in memory order, in chunks of `stride` tokens. Every window
// that covers a chunk takes it into its own float32 sums, so each element is read from memory once
// and converted once for up to four windows. Decode takes the page runs of one window through the
// same inner loop.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/simd.cc"
#include "cpu/simd.h"

#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

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

HWY_INLINE void DemoteFloat16(VF v, uint16_t* to) {
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
  hn::StoreU(hn::TruncateTo(DH(), result), DH(), to);
}
#else
using DHalf = hn::Rebind<hwy::float16_t, DF>;

HWY_INLINE VF PromoteFloat16(const uint16_t* from) {
  return hn::PromoteTo(DF(), hn::BitCast(DHalf(), hn::LoadU(DH(), from)));
}

HWY_INLINE void DemoteFloat16(VF v, uint16_t* to) {
  hn::StoreU(hn::BitCast(DH(), hn::DemoteTo(DHalf(), OneNaN(v))), DH(), to);
}
#endif

struct SimdFloat16 : Float16 {
  static HWY_INLINE VF Load(const uint16_t* from) { return PromoteFloat16(from); }
  static HWY_INLINE void Store(VF v, uint16_t* to) { DemoteFloat16(v, to); }
  // |x * w| is 0 or in [2^-48, 2^32]: exact in float32, so that fused and unfused agree.
  static HWY_INLINE VF Add(VF sum, VF x, VF w) { return hn::MulAdd(x, w, sum); }
};

struct SimdBFloat16 : BFloat16 {
  static HWY_INLINE VF Load(const uint16_t* from) {
    return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(DU(), hn::LoadU(DH(), from))));
  }
  // In integers: the instructions for this flush subnormals on some machines and truncate on
  // others.
  static HWY_INLINE void Store(VF v, uint16_t* to) {
    const auto bits = hn::BitCast(DU(), OneNaN(v));
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(DU(), 1));
    const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(DU(), 0x7FFF)));
    hn::StoreU(hn::TruncateTo(DH(), hn::ShiftRight<16>(rounded)), DH(), to);
  }
  // The product may overflow or become subnormal, where fused and unfused differ: always two steps.
  static HWY_INLINE VF Add(VF sum, VF x, VF w) { return hn::Add(sum, hn::Mul(x, w)); }
};

// Windows served by one pass. Four sums and their operands fit the 16 registers of SSE and AVX2.
constexpr int kMostWindows = 4;

// sums[k][d] += token[j * pitch + d] * weight[j * weight_pitch + k] for j = 0 .. tokens - 1 in
// order, k = 0 .. kWindows - 1 and the elements d of kVectors (1 or 2) vectors. Two vectors are
// twice as many independent additions: one alone waits for the latency of its own chain.
template <class T, int kWindows, int kVectors>
HWY_INLINE void AccumulateVectors(const uint16_t* token, size_t pitch, size_t tokens,
                                  const float* weight, size_t weight_pitch, float* const* sums,
                                  size_t d) {
  const DF df;
  const size_t e = kVectors > 1 ? d + hn::Lanes(df) : d;
  float* const row0 = sums[0];
  float* const row1 = sums[kWindows > 1 ? 1 : 0];
  float* const row2 = sums[kWindows > 2 ? 2 : 0];
  float* const row3 = sums[kWindows > 3 ? 3 : 0];
  VF d0 = hn::LoadU(df, row0 + d), e0 = hn::LoadU(df, row0 + e);
  VF d1 = hn::LoadU(df, row1 + d), e1 = hn::LoadU(df, row1 + e);
  VF d2 = hn::LoadU(df, row2 + d), e2 = hn::LoadU(df, row2 + e);
  VF d3 = hn::LoadU(df, row3 + d), e3 = hn::LoadU(df, row3 + e);
  for (size_t j = 0; j < tokens; ++j, token += pitch, weight += weight_pitch) {
    const VF x = T::Load(token + d);
    const VF y = kVectors > 1 ? T::Load(token + e) : x;
    const auto add = [&](VF& of_d, VF& of_e, int window) HWY_ATTR {
      const VF w = hn::Set(df, weight[window]);
      of_d = T::Add(of_d, x, w);
      if constexpr (kVectors > 1) of_e = T::Add(of_e, y, w);
    };
    add(d0, e0, 0);
    if constexpr (kWindows > 1) add(d1, e1, 1);
    if constexpr (kWindows > 2) add(d2, e2, 2);
    if constexpr (kWindows > 3) add(d3, e3, 3);
  }
  const auto store = [&](VF of_d, VF of_e, float* row) HWY_ATTR {
    hn::StoreU(of_d, df, row + d);
    if constexpr (kVectors > 1) hn::StoreU(of_e, df, row + e);
  };
  store(d0, e0, row0);
  if constexpr (kWindows > 1) store(d1, e1, row1);
  if constexpr (kWindows > 2) store(d2, e2, row2);
  if constexpr (kWindows > 3) store(d3, e3, row3);
}

// The same for d = 0 .. dim - 1, a multiple of the vector's length.
template <class T, int kWindows>
void Accumulate(const uint16_t* token, size_t pitch, size_t tokens, const float* weight,
                size_t weight_pitch, float* const* sums, size_t dim) {
  static_assert(1 <= kWindows && kWindows <= kMostWindows);
  const size_t lanes = hn::Lanes(DF());
  size_t d = 0;
  for (; d + 2 * lanes <= dim; d += 2 * lanes) {
    AccumulateVectors<T, kWindows, 2>(token, pitch, tokens, weight, weight_pitch, sums, d);
  }
  if (d < dim) {
    AccumulateVectors<T, kWindows, 1>(token, pitch, tokens, weight, weight_pitch, sums, d);
  }
}

// The same for any number of windows.
template <class T>
void AccumulateAll(size_t windows, const uint16_t* token, size_t pitch, size_t tokens,
                   const float* weight, size_t weight_pitch, float* const* sums, size_t dim) {
  using Pass = decltype(&Accumulate<T, 1>);
  static constexpr Pass passes[kMostWindows] = {Accumulate<T, 1>, Accumulate<T, 2>,
                                                Accumulate<T, 3>, Accumulate<T, 4>};
  for (size_t k = 0; k < windows; k += kMostWindows) {
    const size_t count = std::min<size_t>(kMostWindows, windows - k);
    passes[count - 1](token, pitch, tokens, weight + k, weight_pitch, sums + k, dim);
  }
}

template <class T>
void StoreRow(const float* sum, size_t size, uint16_t* output) {
  const DF df;
  for (size_t d = 0; d < size; d += hn::Lanes(df)) T::Store(hn::LoadU(df, sum + d), output + d);
}

// Brings part `part` of `parts` of `size` elements near before they are needed: going down the
// sequence one head at a time is a stride that the hardware does not foresee.
HWY_INLINE void PrefetchPart(const uint16_t* from, size_t size, size_t part, size_t parts) {
  constexpr size_t kLine = 64 / sizeof(uint16_t);
  const size_t end = size * (part + 1) / parts;
  for (size_t i = size * part / parts; i < end; i += kLine) hwy::Prefetch(from + i);
}

// One chunk as the windows see it that cover it. Window age a began a chunks ago.
struct Ages {
  size_t first;
  size_t count;
};

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
        weights_(scratch),
        sums_(scratch + heads_ * stride_ * ages_) {
    for (size_t n = 0; n < heads_; ++n) {
      for (size_t j = 0; j < static_cast<size_t>(data.block); ++j) {
        weights_[(n * stride_ + j % stride_) * ages_ + j / stride_] =
            T::ToFloat(data.weight[j * heads_ + n]);
      }
    }
  }

  // `rows` windows from token `token` on, into output rows from `row` on.
  void Run(size_t token, size_t row, size_t rows) {
    const size_t chunks = rows + ages_ - 1;
    const uint16_t* chunk = input_ + token * pitch_;
    for (size_t c = 0; c < chunks; ++c, chunk += stride_ * pitch_) {
      if (c < rows) std::memset(Sum(c), 0, pitch_ * sizeof(float));
      const size_t youngest = c < rows ? 0 : c - rows + 1;
      const size_t oldest = std::min(c, ages_ - 1);
      Chunk(chunk, c, {youngest, oldest - youngest + 1}, c + 1 < chunks);
      if (oldest == ages_ - 1) {
        const size_t done = c - oldest;
        StoreRow<T>(Sum(done), pitch_, output_ + (row + done) * pitch_);
      }
    }
  }

 private:
  float* Sum(size_t window) { return sums_ + window % ages_ * pitch_; }

  void Chunk(const uint16_t* chunk, size_t c, Ages ages, bool more) {
    // A window's last chunk may be a partial one; what follows is not its own, nor surely memory.
    const bool closes = ages.first + ages.count == ages_;
    const size_t shared = closes ? last_tokens_ : stride_;
    float* sums[spec::kCompressLimits.max_block / spec::kAlignment];
    for (size_t n = 0; n < heads_; ++n) {
      if (more) PrefetchPart(chunk + stride_ * pitch_, stride_ * pitch_, n, heads_);
      for (size_t k = 0; k < ages.count; ++k) sums[k] = Sum(c - ages.first - k) + n * dim_;
      const float* weight = weights_ + n * stride_ * ages_ + ages.first;
      const uint16_t* token = chunk + n * dim_;
      AccumulateAll<T>(ages.count, token, pitch_, shared, weight, ages_, sums, dim_);
      if (shared < stride_) {
        AccumulateAll<T>(ages.count - 1, token + shared * pitch_, pitch_, stride_ - shared,
                         weight + shared * ages_, ages_, sums, dim_);
      }
    }
  }

  const uint16_t* input_;
  uint16_t* output_;
  size_t heads_, dim_, stride_;
  size_t ages_;         // windows that cover a chunk
  size_t last_tokens_;  // of a window's last chunk
  size_t pitch_;        // elements of a token
  float* weights_;      // [heads, stride, ages]: token r of a chunk, for the window of age a
  float* sums_;         // [ages, heads, dim]: window i lies at i % ages
};

template <class T>
void Compress(const CompressData& data, int64_t first, int64_t last, float* scratch) {
  const FloatEnvironment environment;
  Prefill<T> prefill(data, scratch);
  for (int64_t i = 0; i < data.run_count; ++i) {
    const RowRun& run = data.runs[i];
    const int64_t begin = std::max(first, run.first_row);
    const int64_t end = std::min(last, run.first_row + run.rows);
    if (begin >= end) continue;
    prefill.Run(static_cast<size_t>(run.first_token + (begin - run.first_row) * data.stride),
                static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  }
}

template <class T>
void Infer(const InferData& data, int64_t first, int64_t last, float* scratch) {
  const FloatEnvironment environment;
  const int64_t pitch = data.heads * data.dim;
  for (int64_t i = 0; i < data.block * data.heads; ++i) scratch[i] = T::ToFloat(data.weight[i]);
  const size_t heads = static_cast<size_t>(data.heads), dim = static_cast<size_t>(data.dim);
  for (int64_t unit = first; unit < last; ++unit) {
    const SlotWrite& write = data.writes[unit / data.heads];
    const int64_t n = unit % data.heads;
    float sum[spec::kMaxHeadDim] = {};
    float* const sums[1] = {sum};
    const float* weight = scratch + n;
    for (int64_t i = 0; i < write.run_count; ++i) {
      const PageRun& run = write.runs[i];
      const int64_t token = run.page * data.page + run.offset;
      Accumulate<T, 1>(data.input + token * pitch + n * data.dim, static_cast<size_t>(pitch),
                       static_cast<size_t>(run.tokens), weight, heads, sums, dim);
      weight += run.tokens * data.heads;
    }
    StoreRow<T>(sum, dim, data.cache + write.slot * pitch + n * data.dim);
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
