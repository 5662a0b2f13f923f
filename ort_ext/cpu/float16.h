// float16 and bfloat16 as bit patterns, to and from float32, in plain integer arithmetic.
#ifndef NSA_ONNX_ORT_EXT_CPU_FLOAT16_H_
#define NSA_ONNX_ORT_EXT_CPU_FLOAT16_H_

#include <cstdint>
#include <cstring>

namespace nsa::cpu {

inline uint32_t FloatBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float FloatFromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// `magnitude` with its low `shift` bits (at most 31) rounded away, to nearest even.
inline uint32_t RoundShift(uint32_t magnitude, int shift) {
  const uint32_t odd = (magnitude >> shift) & 1;
  return (magnitude + (1u << (shift - 1)) - 1 + odd) >> shift;
}

struct BFloat16 {
  static constexpr uint16_t kNaN = 0x7FC0;  // every NaN result, so that instruction sets agree
  static constexpr uint16_t kInfinity = 0x7F80;

  static float ToFloat(uint16_t bits) { return FloatFromBits(uint32_t{bits} << 16); }

  static uint16_t FromFloat(float value) {
    const uint32_t bits = FloatBits(value);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return kNaN;
    return static_cast<uint16_t>(RoundShift(bits, 16));
  }
};

struct Float16 {
  static constexpr uint16_t kNaN = 0x7E00;
  static constexpr uint16_t kInfinity = 0x7C00;

  static float ToFloat(uint16_t bits) {
    const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
    const uint32_t magnitude = bits & 0x7FFFu;
    if (magnitude >= 0x7C00) return FloatFromBits(sign | 0x7F800000 | (magnitude << 13));
    if (magnitude >= 0x0400) return FloatFromBits(sign | ((magnitude << 13) + (112u << 23)));
    const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
    return FloatFromBits(sign | FloatBits(subnormal));
  }

  static uint16_t FromFloat(float value) {
    const uint32_t bits = FloatBits(value);
    const uint32_t sign = (bits >> 16) & 0x8000;
    const uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return kNaN;
    if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | 0x7C00);  // 2^16 and above
    if (magnitude >= 0x38800000) {  // 2^-14: normal, and a carry past the largest gives infinity
      return static_cast<uint16_t>(sign | (RoundShift(magnitude, 13) - (112u << 10)));
    }
    if (magnitude < 0x33000000) return static_cast<uint16_t>(sign);  // below 2^-25: zero
    const uint32_t mantissa = (magnitude & 0x007FFFFF) | 0x00800000;
    const int shift = 126 - static_cast<int>(magnitude >> 23);  // 14 .. 24, to units of 2^-24
    return static_cast<uint16_t>(sign | RoundShift(mantissa, shift));
  }
};

}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_FLOAT16_H_
