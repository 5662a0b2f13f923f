// NsaCompressAttentionInfer in the library's C interface.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_C_API_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_C_API_H_

#include "c_api/c_api.h"

#ifdef __cplusplus
extern "C" {
#endif

// One decode step over a paged cache of compressed tokens, one query per sequence: query
// [B, N1, D], key [block_num, page_block_size, N2, D], value [block_num, page_block_size, N2, Dv]
// and block_table int32 [B, P] are read, attention_out [B, N1, Dv] and topk_indices int32
// [B, N2, k] are written. N1 = head_num, N2 = key_value_head_num, k = select_block_count.
// actual_cmp_seq_kvlen: lengths of the B = `sequences` sequences in compressed tokens, not prefix
// sums.
// threads: how many to use at most, the caller's included; >= 1. Small calls use fewer.
NSA_EXPORT int nsa_compress_attention_infer(
    int dtype, const NsaArray* query, const NsaArray* key, const NsaArray* value,
    double scale_value, int64_t head_num, int64_t key_value_head_num, int64_t select_block_size,
    int64_t select_block_count, int64_t page_block_size, int64_t compress_block_size,
    int64_t compress_stride, const NsaArray* block_table, const int64_t* actual_cmp_seq_kvlen,
    int64_t sequences, const NsaArray* attention_out, const NsaArray* topk_indices, int64_t threads,
    char* error, int64_t error_size);

#ifdef __cplusplus
}
#endif

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_C_API_H_
