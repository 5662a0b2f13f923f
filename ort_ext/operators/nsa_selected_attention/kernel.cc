// The CPU kernel of NsaSelectedAttention over Google Highway, compiled once per instruction set.
//
// The rows of one head come one after the other: neighbours select mostly the same blocks, which
// the second-level cache still has. The rest is in cpu/gathered_attention-inl.h.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "operators/nsa_selected_attention/kernel.cc"
#include "operators/nsa_selected_attention/kernel.h"

#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/float16.h"
#include "cpu/float_environment.h"
#include "cpu/gathered_attention-inl.h"
#include "cpu/gathered_attention.h"
#include "cpu/targets.h"

#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_ROWS_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_ROWS_
namespace nsa::selected_attention {

inline cpu::GatherShape ShapeOf(const KernelData& data) {
  return {static_cast<size_t>(data.group),
          static_cast<size_t>(data.dim),
          static_cast<size_t>(data.value_dim),
          static_cast<size_t>(data.heads * data.dim),
          static_cast<size_t>(data.heads * data.value_dim),
          data.scale};
}

// The tokens of one row and head. A row that sees one of its tokens leaves out those that it does
// not see: their weights would be 0. A row that sees none takes all, `masked`.
class RowTokens {
 public:
  RowTokens(const KernelData& data, const Sequence& sequence, int64_t row, int64_t head)
      : data_(data),
        blocks_(data.plan->blocks.data() + (row * data.heads + head) * data.count),
        key_(data.key + (sequence.first_token * data.heads + head) * data.dim),
        value_(data.value + (sequence.first_token * data.heads + head) * data.value_dim),
        end_(sequence.tokens) {
    if (!data.causal) return;
    const int64_t seen = row - sequence.first_row + 1;
    const auto sees = [&](int32_t block) { return block >= 0 && block * data.block < seen; };
    masked_ = std::none_of(blocks_, blocks_ + data.count, sees);
    if (!masked_) end_ = std::min(end_, seen);
  }

  bool masked() const { return masked_; }
  bool empty() const {
    return std::all_of(blocks_, blocks_ + data_.count, [](int32_t block) { return block < 0; });
  }

  template <class Take>
  void ForEachTile(Take take) const {
    for (int64_t i = 0; i < data_.count; ++i) {
      if (blocks_[i] < 0) continue;
      const int64_t first = blocks_[i] * data_.block;
      const int64_t end = std::min(first + data_.block, end_);
      for (int64_t token = first; token < end; token += int64_t{cpu::kGatherTokens}) {
        take(cpu::GatheredTokens{
            key_ + token * data_.heads * data_.dim, value_ + token * data_.heads * data_.value_dim,
            static_cast<size_t>(std::min(end - token, int64_t{cpu::kGatherTokens}))});
      }
    }
  }

 private:
  const KernelData& data_;
  const int32_t* blocks_;
  const uint16_t* key_;  // of the sequence's first token
  const uint16_t* value_;
  int64_t end_;
  bool masked_ = false;
};

// Calls attend(row, head, tokens) for units first .. last - 1.
template <class Attend>
void ForEachUnit(const KernelData& data, int64_t first, int64_t last, Attend attend) {
  const Sequence* sequence = data.plan->sequences.data();
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t row = unit % data.rows, head = unit / data.rows;
    if (row == 0) sequence = data.plan->sequences.data();
    while (row >= sequence->first_row + sequence->rows) ++sequence;
    attend(row, head, RowTokens(data, *sequence, row, head));
  }
}

}  // namespace nsa::selected_attention
#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_ROWS_

HWY_BEFORE_NAMESPACE();
namespace nsa::selected_attention::HWY_NAMESPACE {

using namespace cpu::HWY_NAMESPACE;

template <class T>
void Attend(const KernelData& data, int64_t first, int64_t last, float* scratch) {
  const cpu::FloatEnvironment environment;
  RowAttention<T> attention(ShapeOf(data), scratch);
  ForEachUnit(data, first, last, [&](int64_t row, int64_t head, const RowTokens& tokens) {
    const int64_t first_head = (row * data.heads + head) * data.group;
    uint16_t* const output = data.output + first_head * data.value_dim;
    if (tokens.empty()) {
      std::fill_n(output, data.group * data.value_dim, uint16_t{0});
      return;
    }
    attention.Begin(data.query + first_head * data.dim);
    tokens.ForEachTile(
        [&](const cpu::GatheredTokens& tile) { attention.Add(tile, tokens.masked()); });
    attention.End(tokens.masked());
    attention.Finish(output);
  });
}

const Kernel* VectorKernels() {
  static constexpr Kernel kernels[] = {Attend<SimdFloat16>, Attend<SimdBFloat16>};
  return kernels;
}

}  // namespace nsa::selected_attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsa::selected_attention {
namespace scalar {
namespace {

template <class T>
void Attend(const KernelData& data, int64_t first, int64_t last, float*) {
  const cpu::FloatEnvironment environment;
  const cpu::GatherShape shape = ShapeOf(data);
  ForEachUnit(data, first, last, [&](int64_t row, int64_t head, const RowTokens& tokens) {
    for (int64_t h = 0; h < data.group; ++h) {
      const int64_t query_head = (row * data.heads + head) * data.group + h;
      cpu::scalar::HeadAttention<T> attention(shape, data.query + query_head * data.dim);
      tokens.ForEachTile(
          [&](const cpu::GatheredTokens& tile) { attention.Add(tile, tokens.masked()); });
      attention.Finish(data.output + query_head * data.value_dim);
    }
  });
}

}  // namespace
}  // namespace scalar

HWY_EXPORT(VectorKernels);

Kernel ActiveKernel(DType dtype) {
  static constexpr Kernel kScalar[] = {scalar::Attend<cpu::Float16>, scalar::Attend<cpu::BFloat16>};
  return cpu::ChooseKernel(dtype, kScalar, [] { return HWY_DYNAMIC_POINTER(VectorKernels)(); });
}

size_t ScratchSize(const KernelData& data) { return cpu::GatherScratchSize(ShapeOf(data)); }

void RunKernel(DType dtype, const KernelData& data, const cpu::Parallel& parallel) {
  // What a unit reads: keys and values of all its blocks, though others read them as well.
  cpu::RunParts(data, ActiveKernel(dtype), data.rows * data.heads, 2 * data.count * data.block, 1,
                parallel);
}

}  // namespace nsa::selected_attention
#endif  // HWY_ONCE
