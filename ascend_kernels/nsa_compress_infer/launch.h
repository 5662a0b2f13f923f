// NsaCompressInfer in the C interface of libnsa_ascend_kernels.so; ../launch.h says how to call it.
#ifndef NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_LAUNCH_H_
#define NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_LAUNCH_H_

#include "ascend_kernels/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

// nsa::compress_decode::PageRun and SlotWrite.
typedef struct NsaAscendPageRun {
  int64_t page, offset, tokens;
} NsaAscendPageRun;
typedef struct NsaAscendSlotWrite {
  int64_t sequence, slot, run_count;
  NsaAscendPageRun runs[3];
} NsaAscendSlotWrite;

// input [pages, page, heads, dim], weight [block, heads], cache [slots, heads, dim].
typedef struct NsaAscendInfer {
  int32_t dtype;
  int64_t pages, page, heads, dim, block, slots;
  const NsaAscendSlotWrite* writes;
  int64_t write_count;
} NsaAscendInfer;

NSA_ASCEND_EXPORT int64_t nsa_ascend_infer_plan(const NsaAscendInfer* call, int64_t cores,
                                                int64_t* plan, int64_t capacity);

NSA_ASCEND_EXPORT int32_t nsa_ascend_infer(void* stream, int32_t dtype, const void* input,
                                           const void* weight, void* cache, const void* plan,
                                           int64_t blocks);

#ifdef __cplusplus
}
#endif

#endif  // NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_LAUNCH_H_
