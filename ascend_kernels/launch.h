// The C interface of libnsa_ascend_kernels.so: plans made on the host, kernels put on a stream.
//
// The same interface is provided twice: by the build with CANN's compiler, and by the one with g++
// on the look-alike (tests/sim/ascendc), which runs the kernels on the CPU and is called
// *simulated* everywhere. A caller
//   1. makes the call's row runs or slot writes (plan/), which checks every index;
//   2. makes the launch plan of them (nsa_ascend_*_plan), a few words per piece of work;
//   3. copies the plan to the device, where it stays until the kernel has run;
//   4. puts the kernel on a stream. Nothing here waits for the device, allocates on it or throws.
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

// Raised when a function or a struct below changes.
enum { NSA_ASCEND_ABI = 1 };
enum { NSA_ASCEND_FLOAT16 = 0, NSA_ASCEND_BFLOAT16 = 1 };

// nsa::compress::RowRun of plan/.
typedef struct NsaAscendRowRun {
  int64_t first_row, rows, first_token;
} NsaAscendRowRun;

// nsa::compress_decode::PageRun and SlotWrite.
typedef struct NsaAscendPageRun {
  int64_t page, offset, tokens;
} NsaAscendPageRun;
typedef struct NsaAscendSlotWrite {
  int64_t sequence, slot, run_count;
  NsaAscendPageRun runs[3];
} NsaAscendSlotWrite;

// input [tokens, heads, dim], weight [block, heads].
typedef struct NsaAscendCompress {
  int32_t dtype;
  int64_t tokens, heads, dim, block, stride;
  const NsaAscendRowRun* runs;
  int64_t run_count;
} NsaAscendCompress;

// input [pages, page, heads, dim], weight [block, heads], cache [slots, heads, dim].
typedef struct NsaAscendInfer {
  int32_t dtype;
  int64_t pages, page, heads, dim, block, slots;
  const NsaAscendSlotWrite* writes;
  int64_t write_count;
} NsaAscendInfer;

NSA_ASCEND_EXPORT int32_t nsa_ascend_abi(void);

// "dav-2201" or "simulated"; a static string.
NSA_ASCEND_EXPORT const char* nsa_ascend_target(void);

// The plan of a call, in int64 words: returns how many there are, and writes them if `capacity`
// suffices (so call twice, or bring room enough). `cores`: vector cores to use, 48 on Atlas A2. -1:
// out of memory. The arguments must have passed plan's checks.
NSA_ASCEND_EXPORT int64_t nsa_ascend_compress_plan(const NsaAscendCompress* call, int64_t cores,
                                                   int64_t* plan, int64_t capacity);
NSA_ASCEND_EXPORT int64_t nsa_ascend_infer_plan(const NsaAscendInfer* call, int64_t cores,
                                                int64_t* plan, int64_t capacity);

// Vector cores that a plan (in host memory) launches; 0: there is nothing to launch.
NSA_ASCEND_EXPORT int64_t nsa_ascend_plan_blocks(const int64_t* plan);

// Puts a kernel on `stream` (an aclrtStream). All other pointers are device addresses; `blocks` is
// what nsa_ascend_plan_blocks said of the plan. Returns 0, or an ACL error code.
NSA_ASCEND_EXPORT int32_t nsa_ascend_compress(void* stream, int32_t dtype, const void* input,
                                              const void* weight, void* output, const void* plan,
                                              int64_t blocks);
NSA_ASCEND_EXPORT int32_t nsa_ascend_infer(void* stream, int32_t dtype, const void* input,
                                           const void* weight, void* cache, const void* plan,
                                           int64_t blocks);

#ifdef __cplusplus
}
#endif

#endif  // NSA_ONNX_ASCEND_KERNELS_LAUNCH_H_
