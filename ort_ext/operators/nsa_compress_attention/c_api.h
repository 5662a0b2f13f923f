// NsaCompressAttention in the library's C interface.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_C_API_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_C_API_H_

#include "c_api/c_api.h"

#ifdef __cplusplus
extern "C" {
#endif

// Each token of query attends to the compressed tokens of its sequence, and selects blocks: query
// [T1, N1, D], key [Tc, N2, D] and value [Tc, N2, Dv] are read, attention_out [T1, N1, Dv] and
// topk_indices int32 [T1, N2, k] are written. N1 = head_num, k = select_block_count.
// Masks are null, or bytes, all sequences' from the first row and column on: topk_mask [>= most
// query tokens of a sequence, >= most blocks], not 0 where a block is always selected; atten_mask
// [the same, >= most compressed tokens], not 0 where a token is not seen.
// actual_seq_qlen, actual_cmp_seq_kvlen, actual_sel_seq_kvlen: prefix sums of the lengths of the
// sequences, in tokens of query, compressed tokens and blocks.
// threads: how many to use at most, the caller's included; >= 1. Small calls use fewer.
NSA_EXPORT int nsa_compress_attention(
    int dtype, const NsaArray* query, const NsaArray* key, const NsaArray* value,
    double scale_value, int64_t head_num, int64_t compress_block_size, int64_t compress_stride,
    int64_t select_block_size, int64_t select_block_count, const NsaArray* topk_mask,
    const NsaArray* atten_mask, const int64_t* actual_seq_qlen, int64_t query_sequences,
    const int64_t* actual_cmp_seq_kvlen, int64_t compressed_sequences,
    const int64_t* actual_sel_seq_kvlen, int64_t block_sequences, const NsaArray* attention_out,
    const NsaArray* topk_indices, int64_t threads, char* error, int64_t error_size);

#ifdef __cplusplus
}
#endif

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_C_API_H_
