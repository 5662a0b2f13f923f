// NsaCompressInfer on the CPU, compiled once per instruction set, with the promises of compress.h.
#ifndef NSA_ONNX_ORT_EXT_CPU_COMPRESS_DECODE_H_
#define NSA_ONNX_ORT_EXT_CPU_COMPRESS_DECODE_H_

#include <cstddef>
#include <cstdint>

#include "cpu/parallel.h"
#include "plan/dtype.h"
#include "plan/nsa_compress_infer.h"

namespace nsa::cpu {

// In place; all arrays dense, elements as their bit patterns.
struct CompressDecodeData {
  const uint16_t* input;   // [block_num, page, heads, dim]
  const uint16_t* weight;  // [block, heads]
  uint16_t* cache;         // [slots, heads, dim]
  int64_t heads;
  int64_t dim;
  int64_t block;
  int64_t page;
  const compress_decode::SlotWrite* writes;
  int64_t write_count;
};

// float32 elements that one call of a kernel needs as `scratch`; their content does not matter.
size_t ScratchSize(const CompressDecodeData& data);

// Heads first .. last - 1, counted over all writes: unit u is head u % heads of write u / heads.
// There is a write, and D is not 0: RunCompressDecode checks that. Does not allocate or throw.
using CompressDecodeKernel = void (*)(const CompressDecodeData& data, int64_t first, int64_t last,
                                      float* scratch);

// That of the instruction set in use.
CompressDecodeKernel ActiveCompressDecodeKernel(DType dtype);

void RunCompressDecode(DType dtype, const CompressDecodeData& data, const Parallel& parallel);

}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_COMPRESS_DECODE_H_
