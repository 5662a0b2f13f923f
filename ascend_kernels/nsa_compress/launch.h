// NsaCompress in the C interface of libnsa_ascend_kernels.so; ../launch.h says how to call it.
#ifndef NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_LAUNCH_H_
#define NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_LAUNCH_H_

#include "ascend_kernels/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

// nsa::compress::RowRun of plan/.
typedef struct NsaAscendRowRun {
  int64_t first_row, rows, first_token;
} NsaAscendRowRun;

// input [tokens, heads, dim], weight [block, heads].
typedef struct NsaAscendCompress {
  int32_t dtype;
  int64_t tokens, heads, dim, block, stride;
  const NsaAscendRowRun* runs;
  int64_t run_count;
} NsaAscendCompress;

NSA_ASCEND_EXPORT int64_t nsa_ascend_compress_plan(const NsaAscendCompress* call, int64_t cores,
                                                   int64_t* plan, int64_t capacity);

NSA_ASCEND_EXPORT int32_t nsa_ascend_compress(void* stream, int32_t dtype, const void* input,
                                              const void* weight, void* output, const void* plan,
                                              int64_t blocks);

#ifdef __cplusplus
}
#endif

#endif  // NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_LAUNCH_H_
