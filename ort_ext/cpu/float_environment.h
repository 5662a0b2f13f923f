// The floating point mode of the processor that the kernels promise their bits in.
#ifndef NSA_ONNX_ORT_EXT_CPU_FLOAT_ENVIRONMENT_H_
#define NSA_ONNX_ORT_EXT_CPU_FLOAT_ENVIRONMENT_H_

#include <cstdint>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace nsa::cpu {

// Round to nearest even, subnormals kept, while it lives. The thread is the host's, and torch and
// onnxruntime can both make theirs flush subnormals to zero.
class FloatEnvironment {
 public:
  FloatEnvironment() : saved_(Get()) { Set(kDefault); }
  ~FloatEnvironment() { Set(saved_); }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
#if defined(__SSE2__)
  using Word = unsigned int;
  static constexpr Word kDefault = 0x1F80;  // MXCSR: all exceptions masked
  static Word Get() { return _mm_getcsr(); }
  static void Set(Word word) { _mm_setcsr(word); }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kDefault = 0;  // FPCR
  static Word Get() {
    Word word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void Set(Word word) { asm volatile("msr fpcr, %0" : : "r"(word) : "memory"); }
#else
  using Word = int;
  static constexpr Word kDefault = 0;
  static Word Get() { return 0; }
  static void Set(Word) {}
#endif

  Word saved_;
};

// The nearest float32, whatever the host's rounding mode is.
inline float NearestFloat(double value) {
  const FloatEnvironment environment;
  // Volatile: compilers, which do not know of modes, move a conversion across their change.
  const volatile double given = value;
  const volatile float nearest = static_cast<float>(given);
  return nearest;
}

}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_FLOAT_ENVIRONMENT_H_
