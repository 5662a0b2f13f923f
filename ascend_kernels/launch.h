// The C interface of libnsa_ascend_kernels.so, our kernels for Ascend devices: plans are made on
// the host, kernels are put on a stream. Here is what all operators share; each operator's two
// functions are in its folder's launch.h.
//
// The same interface is provided twice: by the build with CANN's compiler, and by the one with g++
// on the look-alike (tests/sim/ascendc), which runs the kernels on the CPU and is called
// *simulated* everywhere. A caller
//   1. makes the call's plan (plan/), which checks every index;
//   2. makes the launch plan of that (nsa_ascend_*_plan), a few words per piece of work;
//   3. copies the launch plan to the device, where it stays until the kernel has run;
//   4. puts the kernel on a stream (nsa_ascend_*). Nothing here waits for the device, allocates on
//      it or throws.
//
// nsa_ascend_*_plan makes the launch plan of a call, in int64 words: it returns how many there are,
// and writes them if `capacity` suffices (so call twice, or bring room enough). `cores`: vector
// cores to use, 48 on Atlas A2. -1: out of memory. The arguments must have passed plan's checks.
//
// nsa_ascend_* puts the kernel on `stream` (an aclrtStream). All other pointers are device
// addresses; `blocks` is what nsa_ascend_plan_blocks said of the launch plan. It returns 0, or an
// ACL error code.
#ifndef NSA_ONNX_ASCEND_KERNELS_LAUNCH_H_
#define NSA_ONNX_ASCEND_KERNELS_LAUNCH_H_

#include <stdint.h>

#if defined(__GNUC__)
#define NSA_ASCEND_EXPORT __attribute__((visibility("default")))
#else
#define NSA_ASCEND_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Raised when a function or a struct of any launch.h changes.
enum { NSA_ASCEND_ABI = 1 };
enum { NSA_ASCEND_FLOAT16 = 0, NSA_ASCEND_BFLOAT16 = 1 };

NSA_ASCEND_EXPORT int32_t nsa_ascend_abi(void);

// "dav-2201" or "simulated"; a static string.
NSA_ASCEND_EXPORT const char* nsa_ascend_target(void);

// Vector cores that a plan (in host memory) launches; 0: there is nothing to launch.
NSA_ASCEND_EXPORT int64_t nsa_ascend_plan_blocks(const int64_t* plan);

#ifdef __cplusplus
}
#endif

#endif  // NSA_ONNX_ASCEND_KERNELS_LAUNCH_H_
