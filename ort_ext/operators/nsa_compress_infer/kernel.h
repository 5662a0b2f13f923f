// The CPU kernel of NsaCompressInfer: one algorithm, compiled once per instruction set.
//
// Every instruction set and every split into ranges gives the same bits: float32 accumulation in
// the order j = 0, 1, 2, ..., one rounding to nearest even at the end, one NaN.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_INFER_KERNEL_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_INFER_KERNEL_H_

#include <cstddef>
#include <cstdint>

#include "cpu/parallel.h"
#include "plan/dtype.h"
#include "plan/nsa_compress_infer.h"

namespace nsa::compress_decode {

// In place; all arrays dense, elements as their bit patterns.
struct KernelData {
  const uint16_t* input;   // [block_num, page, heads, dim]
  const uint16_t* weight;  // [block, heads]
  uint16_t* cache;         // [slots, heads, dim]
  int64_t heads;
  int64_t dim;
  int64_t block;
  int64_t page;
  const SlotWrite* writes;
  int64_t write_count;
};

// float32 elements that one call of a kernel needs as `scratch`; their content does not matter.
size_t ScratchSize(const KernelData& data);

// Heads first .. last - 1, counted over all writes: unit u is head u % heads of write u / heads.
// There is a write, and D is not 0: RunKernel checks that. Does not allocate or throw.
using Kernel = void (*)(const KernelData& data, int64_t first, int64_t last, float* scratch);

// That of the instruction set in use.
Kernel ActiveKernel(DType dtype);

void RunKernel(DType dtype, const KernelData& data, const cpu::Parallel& parallel);

}  // namespace nsa::compress_decode

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_INFER_KERNEL_H_
