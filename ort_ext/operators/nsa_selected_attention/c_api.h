// NsaSelectedAttention in the library's C interface.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_C_API_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_C_API_H_

#include "c_api/c_api.h"

#ifdef __cplusplus
extern "C" {
#endif

// Each token of query attends to the tokens of the blocks that were selected for it: query
// [T1, N1, D], key [T2, N2, D], value [T2, N2, Dv] and topk_indices int32 [T1, N2, k] are read,
// attention_out [T1, N1, Dv] is written. Block i of a sequence is its tokens from i *
// select_block_size on; -1 is none. N1 = head_num, k = select_block_count.
// causal: not 0 if a token does not see later ones.
// actual_seq_qlen, actual_seq_kvlen: prefix sums of the lengths of the sequences; the last ones are
// T1 and T2.
// threads: how many to use at most, the caller's included; >= 1. Small calls use fewer.
NSA_EXPORT int nsa_selected_attention(int dtype, const NsaArray* query, const NsaArray* key,
                                      const NsaArray* value, const NsaArray* topk_indices,
                                      double scale_value, int64_t head_num,
                                      int64_t select_block_size, int64_t select_block_count,
                                      int64_t causal, const int64_t* actual_seq_qlen,
                                      int64_t query_sequences, const int64_t* actual_seq_kvlen,
                                      int64_t key_sequences, const NsaArray* attention_out,
                                      int64_t threads, char* error, int64_t error_size);

#ifdef __cplusplus
}
#endif

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_C_API_H_
