// NsaSelectedAttentionInfer in the library's C interface.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_C_API_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_C_API_H_

#include "c_api/c_api.h"

#ifdef __cplusplus
extern "C" {
#endif

// One decode step over a paged cache: the newest token of each of B sequences attends to the tokens
// of the blocks that were selected for it. query [B, N1, D], key [block_num, page_block_size, N2,
// D], value [block_num, page_block_size, N2, Dv], topk_indices int32 [B, N2, k] and block_table
// int32 [B, P] are read, attention_out [B, N1, Dv] is written. Block i of a sequence is its tokens
// from i * select_block_size on; -1 is none. N1 = head_num, N2 = key_value_head_num, k =
// select_block_count. Of block_table only the pages of these tokens are read.
// actual_seq_kvlen: lengths of the B = `sequences` sequences, not prefix sums.
// threads: how many to use at most, the caller's included; >= 1. Small calls use fewer.
NSA_EXPORT int nsa_selected_attention_infer(
    int dtype, const NsaArray* query, const NsaArray* key, const NsaArray* value,
    const NsaArray* topk_indices, double scale_value, int64_t head_num, int64_t key_value_head_num,
    int64_t select_block_size, int64_t select_block_count, int64_t page_block_size,
    const NsaArray* block_table, const int64_t* actual_seq_kvlen, int64_t sequences,
    const NsaArray* attention_out, int64_t threads, char* error, int64_t error_size);

#ifdef __cplusplus
}
#endif

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_C_API_H_
