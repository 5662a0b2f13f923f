// half and bfloat16_t, which the real compiler has built in: 16 bits of storage, values through
// float.
#ifndef NSA_ONNX_TESTS_SIM_ASCENDC_FLOAT_TYPES_H_
#define NSA_ONNX_TESTS_SIM_ASCENDC_FLOAT_TYPES_H_

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ascendc_sim {

inline uint32_t FloatBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float BitsToFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float HalfToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1f, mantissa = bits & 0x3ff;
  if (exponent == 0x1f) return BitsToFloat(sign | 0x7f800000u | (mantissa << 13));
  if (exponent) return BitsToFloat(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude =
      std::ldexp(static_cast<float>(mantissa), -24);  // subnormal or zero, exact
  return sign ? -magnitude : magnitude;
}

// To nearest, ties to even; what overflows becomes infinite, as the device does in its INF/NAN
// mode.
inline uint16_t FloatToHalf(float value) {
  const uint32_t bits = FloatBits(value), magnitude = bits & 0x7fffffffu;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24
    const float steps = std::nearbyint(std::ldexp(std::fabs(value), 24));
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(steps));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

inline uint16_t FloatToBfloat16(float value) {
  const uint32_t bits = FloatBits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace ascendc_sim

struct half {
  uint16_t bits = 0;
  half() = default;
  half(float value) : bits(ascendc_sim::FloatToHalf(value)) {}  // implicit, as the built-in type is
  operator float() const { return ascendc_sim::HalfToFloat(bits); }
};

struct bfloat16_t {
  uint16_t bits = 0;
};

#endif  // NSA_ONNX_TESTS_SIM_ASCENDC_FLOAT_TYPES_H_
