// The CPU kernel of NsaCompress: one algorithm, compiled once per instruction set.
//
// Every instruction set and every split into ranges gives the same bits: float32 accumulation in
// the order j = 0, 1, 2, ..., one rounding to nearest even at the end, one NaN.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_KERNEL_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_KERNEL_H_

#include <cstddef>
#include <cstdint>

#include "cpu/parallel.h"
#include "plan/dtype.h"
#include "plan/nsa_compress.h"

namespace nsa::compress {

// All arrays dense, elements as their bit patterns.
struct KernelData {
  const uint16_t* input;   // [T, heads, dim]
  const uint16_t* weight;  // [block, heads]
  uint16_t* output;        // [T', heads, dim]
  int64_t heads;
  int64_t dim;
  int64_t block;
  int64_t stride;
  const RowRun* runs;
  int64_t run_count;
};

// Windows of one run that cover the same token at most: ceil(block / stride).
inline size_t OverlappingWindows(const KernelData& data) {
  return static_cast<size_t>((data.block + data.stride - 1) / data.stride);
}

// float32 elements that one call of a kernel needs as `scratch`; their content does not matter.
size_t ScratchSize(const KernelData& data);

// Output rows first .. last - 1, counted over all runs. There is a row, and D is not 0: RunKernel
// checks that. Does not allocate or throw.
using Kernel = void (*)(const KernelData& data, int64_t first, int64_t last, float* scratch);

// That of the instruction set in use.
Kernel ActiveKernel(DType dtype);

void RunKernel(DType dtype, const KernelData& data, const cpu::Parallel& parallel);

}  // namespace nsa::compress

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_KERNEL_H_
