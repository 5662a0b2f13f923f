// float16 and bfloat16 vectors, to and from float32, with the same bits on every instruction set.
// Compiled once per instruction set, in each source that includes it.
#if defined(NSA_ONNX_ORT_EXT_CPU_VECTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NSA_ONNX_ORT_EXT_CPU_VECTORS_INL_H_
#undef NSA_ONNX_ORT_EXT_CPU_VECTORS_INL_H_
#else
#define NSA_ONNX_ORT_EXT_CPU_VECTORS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

#include "cpu/float16.h"
#include "cpu/window_step.h"

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

}  // namespace nsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // the toggle
