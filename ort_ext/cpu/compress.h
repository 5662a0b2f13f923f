// NsaCompress on the CPU: one loop, compiled once per instruction set.
//
// Every instruction set and every split into ranges gives the same bits: float32 accumulation in
// the order j = 0, 1, 2, ..., one rounding to nearest even at the end, one NaN.
#ifndef NSA_ONNX_ORT_EXT_CPU_COMPRESS_H_
#define NSA_ONNX_ORT_EXT_CPU_COMPRESS_H_

#include <cstddef>
#include <cstdint>

#include "cpu/parallel.h"
#include "plan/dtype.h"
#include "plan/nsa_compress.h"

namespace nsa::cpu {

// All arrays dense, elements as their bit patterns.
struct CompressData {
  const uint16_t* input;   // [T, heads, dim]
  const uint16_t* weight;  // [block, heads]
  uint16_t* output;        // [T', heads, dim]
  int64_t heads;
  int64_t dim;
  int64_t block;
  int64_t stride;
  const compress::RowRun* runs;
  int64_t run_count;
};

// Windows of one run that cover the same token at most: ceil(block / stride).
inline size_t OverlappingWindows(const CompressData& data) {
  return static_cast<size_t>((data.block + data.stride - 1) / data.stride);
}

// float32 elements that one call of a kernel needs as `scratch`; their content does not matter.
size_t ScratchSize(const CompressData& data);

// Output rows first .. last - 1, counted over all runs. There is a row, and D is not 0: RunCompress
// checks that. Does not allocate or throw.
using CompressKernel = void (*)(const CompressData& data, int64_t first, int64_t last,
                                float* scratch);

// That of the instruction set in use.
CompressKernel ActiveCompressKernel(DType dtype);

void RunCompress(DType dtype, const CompressData& data, const Parallel& parallel);

}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_COMPRESS_H_
