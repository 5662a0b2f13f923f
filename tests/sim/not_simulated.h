// What a symbol of CANN answers here while nothing simulates it: an error, and one line on stderr.
//
// A library of the simulated CANN lists every symbol that the real wheels ask of it, so that they
// load; the first call of one that has no body yet says its name. Giving a symbol a body means
// replacing its line in the library's .cc by a function.
#ifndef NSA_ONNX_TESTS_SIM_NOT_SIMULATED_H_
#define NSA_ONNX_TESTS_SIM_NOT_SIMULATED_H_

#include <atomic>
#include <cstdint>
#include <cstdio>

namespace nsa_sim {

constexpr int kApiNotSupported = 200001;  // ACL_ERROR_API_NOT_SUPPORT of acl_base_rt.h

inline void say_once(std::atomic_flag& said, const char* symbol) {
  if (!said.test_and_set())
    std::fprintf(stderr, "nsa_onnx simulated CANN: %s is not simulated\n", symbol);
}

}  // namespace nsa_sim

// C linkage has no parameter types, and a callee that reads no argument may be called with any.
#define NSA_SIM_ANSWER(type, value, symbol)                         \
  extern "C" __attribute__((visibility("default"))) type symbol() { \
    static std::atomic_flag said = ATOMIC_FLAG_INIT;                \
    nsa_sim::say_once(said, #symbol);                               \
    return value;                                                   \
  }

// For functions that return aclError (or nothing).
#define NOT_SIMULATED(symbol) NSA_SIM_ANSWER(int, nsa_sim::kApiNotSupported, symbol)

// For functions that return a pointer, a handle or a 64-bit count: null, 0.
#define NOT_SIMULATED_NULL(symbol) NSA_SIM_ANSWER(std::uint64_t, 0, symbol)

#endif  // NSA_ONNX_TESTS_SIM_NOT_SIMULATED_H_
