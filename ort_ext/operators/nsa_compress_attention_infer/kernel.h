// The CPU kernel of NsaCompressAttentionInfer: one algorithm, compiled once per instruction set.
//
// A sequence is computed in parts of a fixed number of tokens, which are then put together in their
// order. So its bits depend on the shape and the instruction set alone, whether one thread does it
// or several.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_KERNEL_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_KERNEL_H_

#include <cstddef>
#include <cstdint>

#include "cpu/parallel.h"
#include "plan/dtype.h"
#include "plan/nsa_compress_attention_infer.h"

namespace nsa::compress_attention_decode {

// Dense arrays, 16-bit elements as their bit patterns.
struct KernelData {
  const uint16_t* query;  // [sequence_count, heads, dim]
  const uint16_t* key;    // [block_num, page, kv_heads, dim]
  const uint16_t* value;  // [block_num, page, kv_heads, value_dim]
  uint16_t* output;       // [sequence_count, heads, value_dim]
  int32_t* selected;      // [sequence_count, kv_heads, select_count]
  int64_t heads;
  int64_t kv_heads;
  int64_t dim;
  int64_t value_dim;
  float scale;
  int64_t block;
  int64_t stride;
  int64_t select_block;
  int64_t select_count;
  int64_t page;
  const Sequence* sequences;
  int64_t sequence_count;
  const int64_t* pages;
};

// Compressed tokens that are computed at once.
constexpr int64_t kPartTokens = 1024;

// A unit is one key/value head of one sequence: unit u is head u % kv_heads of sequence u /
// kv_heads. None of these functions allocates or throws.
struct Kernel {
  // Part `part` of a unit, into `memory`, of UnitSize elements.
  void (*part)(const KernelData& data, int64_t unit, int64_t part, float* memory, float* scratch);
  // The unit, of whose parts `memory` has all.
  void (*finish)(const KernelData& data, int64_t unit, const float* memory, float* scratch);
};

// float32 elements: of a unit of so many tokens; of `scratch`.
size_t UnitSize(const KernelData& data, int64_t tokens);
size_t ScratchSize(const KernelData& data);

// That of the instruction set in use.
Kernel ActiveKernel(DType dtype);

void RunKernel(DType dtype, const KernelData& data, const cpu::Parallel& parallel);

}  // namespace nsa::compress_attention_decode

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_KERNEL_H_
