// The C interface of the library, for Python's eager calls (nsa_onnx/runtime/native.py): arrays,
// and what is about the whole library. Each operator's own function is in operators/*/c_api.h.
//
// An operator's function checks its arguments against the whole contract of nsa_onnx/operators
// before the first byte is written. A function that fails returns 1, leaves all memory untouched
// and puts the message (the same words as Python's, NUL-terminated, cut to error_size) into
// `error`. No function throws.
#ifndef NSA_ONNX_ORT_EXT_C_API_H_
#define NSA_ONNX_ORT_EXT_C_API_H_

#include <stdint.h>

#if defined(__GNUC__)
#define NSA_EXPORT __attribute__((visibility("default")))
#else
#define NSA_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { NSA_FLOAT16 = 0, NSA_BFLOAT16 = 1 };

// A dense, row-major array, its elements at multiples of their size. `data` may be null only where
// the array has no element.
typedef struct NsaArray {
  void* data;
  const int64_t* shape;
  int64_t rank;
} NsaArray;

// Name of the instruction set the kernels run on, e.g. "avx2"; a static string.
NSA_EXPORT const char* nsa_cpu_target(void);

// Comma-separated names that this machine can run, best first, "scalar" last; a static string.
NSA_EXPORT const char* nsa_cpu_targets(void);

// Use `name` from now on, in the whole process ("auto": the best one). The environment variable
// NSA_ONNX_CPU_TARGET does the same at load time.
NSA_EXPORT int nsa_set_cpu_target(const char* name, char* error, int64_t error_size);

// Who could compute on an Ascend device here, in the order of preference: a line "name: ok" or
// "name: what it lacks" for each, found out at the first call. A static string.
NSA_EXPORT const char* nsa_ascend_backends(void);

// Version of this library, equal to the Python package's.
NSA_EXPORT const char* nsa_version(void);

#ifdef __cplusplus
}
#endif

#endif  // NSA_ONNX_ORT_EXT_C_API_H_
