// The C interface of libnsa_onnx_ort.so: plain C99, usable from C++. The library's users get this
// file, followed by every operator's own function (operators/*/c_api.h), as one header, nsa_onnx.h.
//
// There are two ways in. RegisterCustomOps gives onnxruntime the operators, for models. Each
// operator's function computes on arrays in this machine's memory, without onnxruntime.
//
// Memory. It is the caller's, always: the library reads and writes it during the call only, keeps
// no pointer to it and frees none. Strings that a function returns are static. An array that a
// function reads may be read-only memory; an array that it writes must not overlap another one.
//
// Errors. A function that returns int returns 0 if it succeeded and 1 if it refused. It then has
// left all arrays untouched, and has put the reason into `error`: NUL-terminated, cut to
// `error_size` bytes (512 are enough), in the same words as in Python. `error` may be
// null, or error_size 0, for no message. A call that succeeds leaves `error` as it was. No function
// throws a C++ exception.
//
// Checks. An operator's function checks its arguments against the whole contract of the operator
// (docs/operators.md) before the first byte is written; it reads each index of the caller's memory
// once, and uses the value that it has checked. It cannot check that an address is valid.
//
// Threads. Every function may be called from any thread at any time. Calls that run at the same
// time must not write to memory that another one reads or writes.
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

// Types of onnxruntime_c_api.h, which this header neither needs nor includes.
struct OrtStatus;
struct OrtSessionOptions;
struct OrtApiBase;

// Adds the operators to a session's options; base is OrtGetApiBase(). Null if it succeeded, else a
// status that the caller releases, as of any function of onnxruntime. Once per options is enough
// and more is harmless. A process can have one onnxruntime with the operators, 1.21 or later.
NSA_EXPORT struct OrtStatus* RegisterCustomOps(struct OrtSessionOptions* options,
                                               const struct OrtApiBase* base);

// The element types of the operators' functions (`dtype`).
enum { NSA_FLOAT16 = 0, NSA_BFLOAT16 = 1 };

// A dense, row-major array, its elements at multiples of their size. `data` may be null only where
// the array has no element.
typedef struct NsaArray {
  void* data;
  const int64_t* shape;
  int64_t rank;
} NsaArray;

// Version of this library, equal to the Python package's.
NSA_EXPORT const char* nsa_version(void);

// Name of the instruction set the kernels run on, e.g. "avx2".
NSA_EXPORT const char* nsa_cpu_target(void);

// Comma-separated names that this machine can run, best first, "scalar" last.
NSA_EXPORT const char* nsa_cpu_targets(void);

// Use `name` from now on, in the whole process ("auto": the best one); calls that have begun may
// still use the old one. Operators that compress windows give the same bits on all, attention
// stages on each of them; between two they may differ by what float32 sums do. The environment
// variable NSA_ONNX_CPU_TARGET does the same at load time.
NSA_EXPORT int nsa_set_cpu_target(const char* name, char* error, int64_t error_size);

// Who could compute on an Ascend device here, in the order of preference: a line "name: ok" or
// "name: what it lacks" for each, found out at the first call.
NSA_EXPORT const char* nsa_ascend_backends(void);

#ifdef __cplusplus
}
#endif

#endif  // NSA_ONNX_ORT_EXT_C_API_H_
