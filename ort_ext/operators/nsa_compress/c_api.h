// NsaCompress in the library's C interface.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_C_API_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_C_API_H_

#include "c_api/c_api.h"

#ifdef __cplusplus
extern "C" {
#endif

// Each window of tokens becomes one token, a weighted sum per head: input [T, N, D] and weight
// [compress_block_size, N] are read, output [T', N, D] is written.
// actual_seq_len: prefix sums of the lengths of the `segments` segments; the last one is T. T' is
// the number of all segments' windows: for a segment of L tokens none if L < block, else one more
// than (L - block) over stride, rounded down.
// threads: how many to use at most, the caller's included; >= 1. Small calls use fewer.
NSA_EXPORT int nsa_compress(int dtype, const NsaArray* input, const NsaArray* weight,
                            int64_t compress_block_size, int64_t compress_stride,
                            const int64_t* actual_seq_len, int64_t segments, const NsaArray* output,
                            int64_t threads, char* error, int64_t error_size);

#ifdef __cplusplus
}
#endif

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_C_API_H_
