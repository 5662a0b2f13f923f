// NsaCompressInfer in the library's C interface.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_INFER_C_API_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_INFER_C_API_H_

#include "c_api/c_api.h"

#ifdef __cplusplus
extern "C" {
#endif

// One decode step over a paged cache: a sequence whose last token completes a window has this
// window compressed into cache[slot_mapping[b]]. Nothing else of cache [slots, N, D] is touched.
// input [block_num, page_block_size, N, D], weight [compress_block_size, N], slot_mapping int32 [B]
// and block_table int32 [B, max_pages] are read. block_table may be null: sequence b then owns the
// pages b * P .. (b + 1) * P - 1, P = block_num / B.
// actual_seq_len: lengths of the B = `sequences` sequences, not prefix sums.
// threads: how many to use at most, the caller's included; >= 1. Small calls use fewer.
NSA_EXPORT int nsa_compress_infer(int dtype, const NsaArray* input, const NsaArray* weight,
                                  const NsaArray* slot_mapping, int64_t compress_block_size,
                                  int64_t compress_stride, int64_t page_block_size,
                                  const NsaArray* block_table, const int64_t* actual_seq_len,
                                  int64_t sequences, const NsaArray* cache, int64_t threads,
                                  char* error, int64_t error_size);

#ifdef __cplusplus
}
#endif

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_INFER_C_API_H_
