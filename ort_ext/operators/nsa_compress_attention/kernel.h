// The CPU kernel of NsaCompressAttention: one algorithm, compiled once per instruction set.
//
// On one instruction set every split into ranges gives the same bits: each number is computed in an
// order that depends on the call's shape alone. Two instruction sets may differ by what float32
// sums in another order, or with fused multiply-adds, do.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_KERNEL_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_KERNEL_H_

#include <cstddef>
#include <cstdint>

#include "cpu/parallel.h"
#include "plan/dtype.h"
#include "plan/nsa_compress_attention.h"

namespace nsa::compress_attention {

// Dense arrays, 16-bit elements as their bit patterns. A mask is null, or bytes in rows of `pitch`.
struct KernelData {
  const uint16_t* query;      // [rows, heads, dim]
  const uint16_t* key;        // [tokens, kv_heads, dim]
  const uint16_t* value;      // [tokens, kv_heads, value_dim]
  const uint8_t* topk_mask;   // not 0: always selected
  const uint8_t* atten_mask;  // not 0: not seen
  uint16_t* output;           // [rows, heads, value_dim]
  int32_t* selected;          // [rows, kv_heads, select_count]
  int64_t topk_pitch;
  int64_t atten_pitch;
  int64_t rows;
  int64_t heads;
  int64_t kv_heads;
  int64_t dim;
  int64_t value_dim;
  float scale;
  int64_t block;
  int64_t stride;
  int64_t select_block;
  int64_t select_count;
  const Sequence* sequences;  // their rows follow one another
  int64_t sequence_count;
  int64_t most_tokens;  // of a sequence
};

// float32 elements that one call of a kernel needs as `scratch`; their content does not matter.
size_t ScratchSize(const KernelData& data);

// Units first .. last - 1: unit u is query u % rows for key/value head u / rows. Does not allocate
// or throw.
using Kernel = void (*)(const KernelData& data, int64_t first, int64_t last, float* scratch);

// That of the instruction set in use.
Kernel ActiveKernel(DType dtype);

void RunKernel(DType dtype, const KernelData& data, const cpu::Parallel& parallel);

}  // namespace nsa::compress_attention

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_KERNEL_H_
