// NsaCompressInfer in the library's C interface; c_api/c_api.h says what holds for every function.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_INFER_C_API_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_INFER_C_API_H_

#include "c_api/c_api.h"

#ifdef __cplusplus
extern "C" {
#endif

// NsaCompressInfer, in place: only the written slots of `cache` are touched. They must not share
// memory with what the step reads.
// slot_mapping and block_table are int32; block_table may be null. actual_seq_len: int64 lengths.
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
