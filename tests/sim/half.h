// float16 and bfloat16 in and out of float32, with the two roundings that the vendor's kernels use.
#ifndef NSA_ONNX_TESTS_SIM_HALF_H_
#define NSA_ONNX_TESTS_SIM_HALF_H_

#include <cmath>
#include <cstdint>
#include <cstring>

namespace nsa_sim {

enum class Rounding {
  kNearestEven,  // CAST_RINT
  kHalfAway,     // CAST_ROUND: halves go away from zero
};

inline std::uint32_t float_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bits_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// `bits` shifted right, rounded at the cut. Carries may run into the exponent: that is right.
inline std::uint32_t rounded_shift(std::uint32_t bits, int shift, Rounding rounding) {
  if (shift > 25) return 0;  // less than half of the last place
  const std::uint32_t kept = bits >> shift, rest = bits & ((1u << shift) - 1),
                      half = 1u << (shift - 1);
  const bool up =
      rest > half || (rest == half && (rounding == Rounding::kHalfAway || (kept & 1u) != 0));
  return kept + (up ? 1 : 0);
}

inline float from_bfloat16(std::uint16_t bits) { return bits_float(std::uint32_t{bits} << 16); }

inline std::uint16_t to_bfloat16(float value, Rounding rounding) {
  if (std::isnan(value)) return 0x7FC0;
  const std::uint32_t bits = float_bits(value), sign = bits & 0x80000000u;
  return static_cast<std::uint16_t>(rounded_shift(bits ^ sign, 16, rounding) | sign >> 16);
}

inline float from_float16(std::uint16_t bits) {
  const int exponent = bits >> 10 & 0x1F, mantissa = bits & 0x3FF;
  const float sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
  if (exponent == 0x1F) return mantissa != 0 ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(mantissa | 0x400), exponent - 25);
}

inline std::uint16_t to_float16(float value, Rounding rounding) {
  if (std::isnan(value)) return 0x7E00;
  const std::uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000;
  if (std::isinf(value)) return static_cast<std::uint16_t>(sign | 0x7C00);
  const int exponent = static_cast<int>(bits >> 23 & 0xFF) - 127;
  const std::uint32_t mantissa = exponent == -127 ? bits & 0x7FFFFF : (bits & 0x7FFFFF) | 0x800000;
  // Below 2^-14 the last place stays at 2^-24; above, the implicit bit counts as one exponent step.
  const int below = exponent < -14 ? -14 - exponent : 0;
  const std::uint32_t base = below > 0 ? 0 : static_cast<std::uint32_t>(exponent + 14) << 10;
  const std::uint32_t result = base + rounded_shift(mantissa, 13 + below, rounding);
  return static_cast<std::uint16_t>(sign | (result > 0x7C00 ? 0x7C00 : result));
}

}  // namespace nsa_sim

#endif  // NSA_ONNX_TESTS_SIM_HALF_H_
