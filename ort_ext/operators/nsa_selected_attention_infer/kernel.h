// The CPU kernel of NsaSelectedAttentionInfer: one algorithm, compiled once per instruction set.
//
// The order of sums depends on the shape and the instruction set: every split into ranges gives the
// same bits, and another instruction set the same within the error of float32.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_KERNEL_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_KERNEL_H_

#include <cstddef>
#include <cstdint>

#include "cpu/parallel.h"
#include "plan/dtype.h"
#include "plan/nsa_selected_attention_infer.h"

namespace nsa::selected_attention_decode {

// All arrays dense, elements as their bit patterns.
struct KernelData {
  const uint16_t* query;  // [batch, heads * group, dim]
  const uint16_t* key;    // [pages, page, heads, dim]
  const uint16_t* value;  // [pages, page, heads, value_dim]
  uint16_t* output;       // [batch, heads * group, value_dim]
  int64_t batch;
  int64_t heads;  // of key and value
  int64_t group;  // query heads of each
  int64_t dim;
  int64_t value_dim;
  int64_t block;
  int64_t count;  // of blocks of a sequence and head
  float scale;
  const Plan* plan;
  float* parts;  // PartsSize elements, whose content does not matter
};

// Parts into which the blocks of a sequence and head are divided: of few sequences, so that many
// threads have work. It depends on the shape alone.
int64_t PartCount(const KernelData& data);

// float32 elements for the sums of all parts; 0 where nothing is divided.
size_t PartsSize(const KernelData& data);

// float32 elements that one call of a kernel needs as `scratch`; their content does not matter.
size_t ScratchSize(const KernelData& data);

// Units first .. last - 1, of which there is one. Does not allocate or throw.
using Kernel = void (*)(const KernelData& data, int64_t first, int64_t last, float* scratch);

struct Kernels {
  Kernel attend;   // unit u is part u % PartCount of a sequence and head
  Kernel combine;  // unit u is a sequence and head, all of whose parts have been attended to
};

// Those of the instruction set in use.
Kernels ActiveKernels(DType dtype);

void RunKernel(DType dtype, KernelData data, const cpu::Parallel& parallel);

}  // namespace nsa::selected_attention_decode

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_KERNEL_H_
