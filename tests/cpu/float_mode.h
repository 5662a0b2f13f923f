// The floating point mode of the host's thread: what a host might have set,
// and a kernel must leave as it was.
#ifndef NSA_ONNX_TESTS_CPU_FLOAT_MODE_H_
#define NSA_ONNX_TESTS_CPU_FLOAT_MODE_H_

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include <cstdint>

namespace nsa::cpu {

#if defined(__SSE2__)
using Mode = uint32_t;
constexpr Mode kModes[] = {0x1F80, 0x1F80 | 0x8040 | 0x4000};  // flush to zero, round up
constexpr Mode kStatus = 0x3F;                                 // exceptions that have happened
inline Mode GetMode() { return _mm_getcsr() & ~kStatus; }
inline void SetMode(Mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
using Mode = uint64_t;
constexpr Mode kModes[] = {0, 1u << 25 | 1u << 24 | 1u << 22 | 1u << 19};  // default NaN as well
inline Mode GetMode() {
  Mode mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void SetMode(Mode mode) { asm volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
#else
using Mode = int;
constexpr Mode kModes[] = {0, 0};
inline Mode GetMode() { return 0; }
inline void SetMode(Mode) {}
#endif

}  // namespace nsa::cpu

#endif  // NSA_ONNX_TESTS_CPU_FLOAT_MODE_H_
