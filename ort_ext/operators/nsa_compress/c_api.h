// NsaCompress in the library's C interface; c_api/c_api.h says what holds for every function.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_C_API_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_C_API_H_

#include "c_api/c_api.h"

#ifdef __cplusplus
extern "C" {
#endif

// NsaCompress: output must be [T', N, D] with T' as compressed_length computes it.
// actual_seq_len: int64 prefix sums, `segments` of them. threads >= 1.
NSA_EXPORT int nsa_compress(int dtype, const NsaArray* input, const NsaArray* weight,
                            int64_t compress_block_size, int64_t compress_stride,
                            const int64_t* actual_seq_len, int64_t segments, const NsaArray* output,
                            int64_t threads, char* error, int64_t error_size);

#ifdef __cplusplus
}
#endif

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_C_API_H_
