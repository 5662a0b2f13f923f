// Deterministic bit patterns for float16 and bfloat16: each kind is a place where kernels that are
// nearly the same give different bits.
#ifndef NSA_ONNX_TESTS_CPU_VALUES_H_
#define NSA_ONNX_TESTS_CPU_VALUES_H_

#include <cstdint>

#include "plan/dtype.h"

namespace nsa::cpu {

// splitmix64: the same numbers on every machine, which <random>'s distributions do not promise.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // low .. high
  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  bool OneIn(int64_t n) { return Between(1, n) == 1; }

 private:
  uint64_t state_;
};

enum class Values {
  kModerate,    // nothing special
  kAnyBits,     // every pattern: NaNs of all payloads and signs, infinities, subnormals
  kFinite,      // every finite pattern
  kCancelling,  // large terms that cancel: another order of the sum gives another result
  kLargest,     // sums that overflow when they are rounded, products that overflow before the sum
  kSmallest,    // subnormal results, products below float32's smallest
  kTies,        // halfway between two results
  kBorder,      // of one case all products near the border where they overflow, or become subnormal
  kSpecial,     // moderate, with a few NaNs, infinities and zeros of both signs
};
constexpr int kValueKinds = 9;
constexpr const char* kValueNames[kValueKinds] = {"moderate",   "any bits", "finite",
                                                  "cancelling", "largest",  "smallest",
                                                  "ties",       "border",   "special"};

class Generator {
 public:
  Generator(DType dtype, Values values, Random* random)
      : mantissa_(dtype == DType::kFloat16 ? 10 : 7),
        bias_(dtype == DType::kFloat16 ? 15 : 127),
        values_(values),
        random_(*random) {
    const int64_t one = bias_ == 127 ? 125 : 14, other = bias_ == 127 ? -141 : -24;
    border_ = random_.OneIn(2) ? random_.Between(one, one + 4) : random_.Between(other, other + 18);
  }

  // weight[block, heads]; input[tokens, pitch] with pitch = heads * dim.
  void Weight(uint16_t* weight, int64_t block, int64_t heads) {
    for (int64_t n = 0; n < heads; ++n) {
      const uint16_t shared = WeightOfHead(n);
      for (int64_t j = 0; j < block; ++j) {
        weight[j * heads + n] = SharesWeight() ? shared : WeightElement();
      }
    }
  }
  void Input(uint16_t* input, int64_t tokens, int64_t heads, int64_t dim) {
    const int64_t pitch = heads * dim;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < pitch; ++i) {
        uint16_t* const x = input + t * pitch + i;
        // Every second token may undo what the one before it added.
        const bool undo = values_ == Values::kCancelling && t % 2 == 1 && random_.OneIn(2);
        *x = undo ? static_cast<uint16_t>(x[-pitch] ^ 0x8000) : Element(i / dim);
      }
    }
  }

 private:
  // (-1)^negative * 2^exponent * (1 + mantissa / 2^mantissa_). Always built with braces: they fix
  // the order in which random numbers are drawn, a function's arguments do not.
  struct Parts {
    bool negative;
    int64_t exponent;
    uint64_t mantissa;
  };
  uint16_t Make(const Parts& of) const {
    const int64_t low = static_cast<int64_t>(of.mantissa & ((1u << mantissa_) - 1));
    const int64_t sign = of.negative ? 0x8000 : 0;
    return static_cast<uint16_t>(sign | ((of.exponent + bias_) << mantissa_) | low);
  }
  uint16_t Any(int64_t low, int64_t high) {
    return Make({random_.OneIn(2), random_.Between(low, high), random_.Next()});
  }
  uint16_t Finite() {
    for (;;) {
      const auto bits = static_cast<uint16_t>(random_.Next());
      if (((bits >> mantissa_) & (2 * bias_ + 1)) != 2 * bias_ + 1) return bits;
    }
  }
  uint16_t Special() {
    const uint16_t sign = random_.OneIn(2) ? 0x8000 : 0, infinity = Make({false, bias_ + 1, 0});
    switch (random_.Between(0, 5)) {
      case 0:
        return sign | infinity;
      case 1:
        return sign | infinity | 1;  // signalling
      case 2:
        return static_cast<uint16_t>(sign | infinity | random_.Next());  // any payload
      case 3:
        return sign;
      case 4:
        return sign | static_cast<uint16_t>(infinity - 1);  // the largest
      default:
        return sign | 1;  // the smallest
    }
  }

  bool SharesWeight() const {
    return values_ == Values::kCancelling || values_ == Values::kLargest ||
           values_ == Values::kSmallest || values_ == Values::kTies || values_ == Values::kBorder;
  }
  // Odd and even heads have two styles of kLargest and kSmallest.
  uint16_t WeightOfHead(int64_t n) {
    if (values_ == Values::kCancelling) return Any(-2, 2);
    if (values_ == Values::kBorder) return Any(border_ / 2, border_ / 2);
    const bool at_one = n % 2 == 0 || values_ == Values::kTies;
    if (at_one) return Make({random_.OneIn(2), 0, 0});
    const int64_t half = values_ == Values::kLargest ? (bias_ + 1) / 2 : -Middle();
    return Any(half, half);
  }
  uint16_t WeightElement() {
    if (values_ == Values::kAnyBits) return static_cast<uint16_t>(random_.Next());
    if (values_ == Values::kFinite) return Finite();
    if (values_ == Values::kSpecial && random_.OneIn(200)) return Special();
    return Any(-3, 1);
  }

  uint16_t Element(int64_t head) {
    switch (values_) {
      case Values::kAnyBits:
        return static_cast<uint16_t>(random_.Next());
      case Values::kFinite:
        return Finite();
      case Values::kCancelling:
        return random_.OneIn(2) ? Any(8, 12) : Any(-8, -2);
      case Values::kLargest:
        return Largest(head);
      case Values::kSmallest:
        return Smallest(head);
      case Values::kTies:
        return Tie();
      case Values::kBorder:
        return random_.OneIn(12) ? Any(border_ - border_ / 2 - 1, border_ - border_ / 2) : 0;
      case Values::kSpecial:
        return random_.OneIn(300) ? Special() : Any(-4, 3);
      default:
        return Any(-4, 3);
    }
  }
  // Few terms, so that sums stay at the border: the largest value, and half its last place.
  uint16_t Largest(int64_t head) {
    if (!random_.OneIn(12)) return 0;
    if (head % 2) return Any((bias_ + 1) / 2 - 2, (bias_ + 1) / 2);
    if (random_.OneIn(2)) return Make({random_.OneIn(4), bias_, ~uint64_t{0}});
    return Make({random_.OneIn(2), bias_ - mantissa_ - random_.Between(1, 2), random_.OneIn(3)});
  }
  // Subnormal inputs, or products down to a quarter of what float32 can hold at all.
  uint16_t Smallest(int64_t head) {
    if (!random_.OneIn(4)) return 0;
    if (head % 2 == 0)
      return static_cast<uint16_t>(random_.Next() & (0x8000 | ((2u << mantissa_) - 1)));
    const int64_t top = bias_ == 127 ? -126 : -20, bottom = bias_ == 127 ? -151 : -27;
    const int64_t exponent = random_.Between(bottom, top) + Middle();
    return exponent > -bias_ ? Any(exponent, exponent) : uint16_t{1};
  }
  // Minus the exponent of the weights of kSmallest.
  int64_t Middle() const { return bias_ == 127 ? 64 : 12; }
  // One large power of two or another, and halves and quarters of its last place.
  uint16_t Tie() {
    if (!random_.OneIn(8)) return 0;
    if (random_.OneIn(3)) return Make({false, 3, random_.Next()});
    return Make({random_.OneIn(2), 3 - mantissa_ - random_.Between(0, 3), 0});
  }

  int mantissa_, bias_;
  Values values_;
  Random& random_;
  int64_t border_;  // of kBorder: the largest exponent of a product, before its mantissa
};

}  // namespace nsa::cpu

#endif  // NSA_ONNX_TESTS_CPU_VALUES_H_
