// The CPU kernel of NsaSelectedAttention: one algorithm, compiled once per instruction set.
//
// The order of sums depends on the shape and the instruction set: every split into ranges gives the
// same bits, and another instruction set the same within the error of float32.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_KERNEL_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_KERNEL_H_

#include <cstddef>
#include <cstdint>

#include "cpu/parallel.h"
#include "plan/dtype.h"
#include "plan/nsa_selected_attention.h"

namespace nsa::selected_attention {

// All arrays dense, elements as their bit patterns.
struct KernelData {
  const uint16_t* query;  // [rows, heads * group, dim]
  const uint16_t* key;    // [tokens, heads, dim]
  const uint16_t* value;  // [tokens, heads, value_dim]
  uint16_t* output;       // [rows, heads * group, value_dim]
  int64_t rows;
  int64_t heads;  // of key and value
  int64_t group;  // query heads of each
  int64_t dim;
  int64_t value_dim;
  int64_t block;
  int64_t count;  // of blocks of a row and head
  float scale;
  bool causal;
  const Plan* plan;
};

// float32 elements that one call of a kernel needs as `scratch`; their content does not matter.
size_t ScratchSize(const KernelData& data);

// Units first .. last - 1: unit u is head u / rows of row u % rows. There is a unit: RunKernel
// checks that. Does not allocate or throw.
using Kernel = void (*)(const KernelData& data, int64_t first, int64_t last, float* scratch);

// That of the instruction set in use.
Kernel ActiveKernel(DType dtype);

void RunKernel(DType dtype, const KernelData& data, const cpu::Parallel& parallel);

}  // namespace nsa::selected_attention

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_KERNEL_H_
