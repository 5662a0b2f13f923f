// float16 and bfloat16 for an oracle: written from the formats' definition, in exact double
// arithmetic, and with nothing of the kernels' own conversions.
#ifndef NSA_ONNX_TESTS_CPU_NUMBERS_H_
#define NSA_ONNX_TESTS_CPU_NUMBERS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "plan/dtype.h"

namespace nsa::cpu {

struct Format {
  int mantissa;  // bits
  int bias;
  constexpr explicit Format(DType dtype)
      : mantissa(dtype == DType::kFloat16 ? 10 : 7), bias(dtype == DType::kFloat16 ? 15 : 127) {}
  constexpr int infinity() const { return (2 * bias + 1) << mantissa; }
};

inline bool IsNan(DType dtype, uint16_t bits) { return (bits & 0x7FFF) > Format(dtype).infinity(); }

// The value of these bits; every one of them is a float, too.
inline float ValueOf(DType dtype, uint16_t bits) {
  const Format format(dtype);
  const int magnitude = bits & 0x7FFF;
  const int exponent = magnitude >> format.mantissa;
  const int fraction = magnitude & ((1 << format.mantissa) - 1);
  double value = std::numeric_limits<double>::infinity();
  if (IsNan(dtype, bits)) {
    value = std::numeric_limits<double>::quiet_NaN();
  } else if (magnitude < format.infinity()) {
    const int whole = exponent > 0 ? fraction + (1 << format.mantissa) : fraction;
    value = std::ldexp(whole, std::max(exponent, 1) - format.bias - format.mantissa);
  }
  return static_cast<float>(bits & 0x8000 ? -value : value);
}

// The bits of the nearest value, of two equally near ones the even. A NaN is one of many.
inline uint16_t NearestTo(DType dtype, double value) {
  const Format format(dtype);
  const int sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return static_cast<uint16_t>(format.infinity() + 1);
  if (std::isinf(value)) return static_cast<uint16_t>(sign | format.infinity());
  const int exponent = std::max(value == 0 ? -10000 : std::ilogb(value), 1 - format.bias);
  // Counts of the last place: what is rounded up to the next power of two carries by itself.
  const double places = std::nearbyint(std::ldexp(std::fabs(value), format.mantissa - exponent));
  const int64_t bits =
      (int64_t{exponent + format.bias - 1} << format.mantissa) + static_cast<int64_t>(places);
  return static_cast<uint16_t>(sign | std::min<int64_t>(bits, format.infinity()));
}

}  // namespace nsa::cpu

#endif  // NSA_ONNX_TESTS_CPU_NUMBERS_H_
