// The CPU kernel of NsaSelectedAttentionInfer over Google Highway, compiled once per instruction
// set: cpu/gathered_attention-inl.h on the pages where they lie.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "operators/nsa_selected_attention_infer/kernel.cc"
#include "operators/nsa_selected_attention_infer/kernel.h"

#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "cpu/float16.h"
#include "cpu/float_environment.h"
#include "cpu/gathered_attention-inl.h"
#include "cpu/gathered_attention.h"
#include "cpu/targets.h"

#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_TOKENS_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_TOKENS_
namespace nsa::selected_attention_decode {

inline cpu::GatherShape ShapeOf(const KernelData& data) {
  return {static_cast<size_t>(data.group),
          static_cast<size_t>(data.dim),
          static_cast<size_t>(data.value_dim),
          static_cast<size_t>(data.heads * data.dim),
          static_cast<size_t>(data.heads * data.value_dim),
          data.scale};
}

// The runs of blocks first .. last - 1 of a sequence and head, which is counted over all sequences.
class Runs {
 public:
  Runs(const KernelData& data, int64_t sequence_head, int64_t first, int64_t last)
      : begin_(Begin(data, sequence_head * data.count + first)),
        end_(Begin(data, sequence_head * data.count + last)) {}

  const TokenRun* begin() const { return begin_; }
  const TokenRun* end() const { return end_; }
  bool empty() const { return begin_ == end_; }

 private:
  static const TokenRun* Begin(const KernelData& data, int64_t block) {
    return data.plan->runs.data() +
           (block == 0 ? 0 : data.plan->ends[static_cast<size_t>(block - 1)]);
  }

  const TokenRun* begin_;
  const TokenRun* end_;
};

template <class Take>
void ForEachTile(const KernelData& data, int64_t sequence_head, const Runs& runs, Take take) {
  const int64_t head = sequence_head % data.heads;
  for (const TokenRun& run : runs) {
    for (int64_t i = 0; i < run.tokens; i += int64_t{cpu::kGatherTokens}) {
      const int64_t place = (run.first + i) * data.heads + head;
      take(cpu::GatheredTokens{
          data.key + place * data.dim, data.value + place * data.value_dim,
          static_cast<size_t>(std::min(run.tokens - i, int64_t{cpu::kGatherTokens}))});
    }
  }
}

}  // namespace nsa::selected_attention_decode
#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_TOKENS_

HWY_BEFORE_NAMESPACE();
namespace nsa::selected_attention_decode::HWY_NAMESPACE {

using namespace cpu::HWY_NAMESPACE;

template <class T>
void Attend(const KernelData& data, int64_t first, int64_t last, float* scratch) {
  const cpu::FloatEnvironment environment;
  const cpu::GatherShape shape = ShapeOf(data);
  const size_t part_size = cpu::GatherPartSize(shape);
  const int64_t parts = PartCount(data);
  RowAttention<T> attention(shape, scratch);
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t at = unit / parts, part = unit % parts;
    const Runs runs(data, at, cpu::PartBegin(data.count, parts, part),
                    cpu::PartBegin(data.count, parts, part + 1));
    uint16_t* const output = data.output + at * data.group * data.value_dim;
    if (runs.empty()) {  // Combine takes no part of them
      if (parts == 1) std::fill_n(output, data.group * data.value_dim, uint16_t{0});
      continue;
    }
    attention.Begin(data.query + at * data.group * data.dim);
    ForEachTile(data, at, runs,
                [&](const cpu::GatheredTokens& tile) { attention.Add(tile, false); });
    attention.End(false);
    if (parts == 1) {
      attention.Finish(output);
    } else {
      attention.StorePart(data.parts + static_cast<size_t>(unit) * part_size);
    }
  }
}

template <class T>
void Combine(const KernelData& data, int64_t first, int64_t last, float* scratch) {
  const cpu::FloatEnvironment environment;
  const cpu::GatherShape shape = ShapeOf(data);
  const size_t part_size = cpu::GatherPartSize(shape);
  const int64_t parts = PartCount(data);
  RowAttention<T> attention(shape, scratch);
  for (int64_t at = first; at < last; ++at) {
    uint16_t* const output = data.output + at * data.group * data.value_dim;
    if (Runs(data, at, 0, data.count).empty()) {
      std::fill_n(output, data.group * data.value_dim, uint16_t{0});
      continue;
    }
    const float* from = data.parts + static_cast<size_t>(at * parts) * part_size;
    attention.Begin(data.query + at * data.group * data.dim);
    for (int64_t part = 0; part < parts; ++part, from += part_size) {
      const Runs runs(data, at, cpu::PartBegin(data.count, parts, part),
                      cpu::PartBegin(data.count, parts, part + 1));
      if (!runs.empty()) attention.AddPart(from);
    }
    attention.Finish(output);
  }
}

const Kernels* VectorKernels() {
  static constexpr Kernels kernels[] = {{Attend<SimdFloat16>, Combine<SimdFloat16>},
                                        {Attend<SimdBFloat16>, Combine<SimdBFloat16>}};
  return kernels;
}

}  // namespace nsa::selected_attention_decode::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsa::selected_attention_decode {
namespace scalar {
namespace {

// The first part does the work of all.
template <class T>
void Attend(const KernelData& data, int64_t first, int64_t last, float*) {
  const cpu::FloatEnvironment environment;
  const cpu::GatherShape shape = ShapeOf(data);
  const int64_t parts = PartCount(data);
  for (int64_t unit = first; unit < last; ++unit) {
    if (unit % parts != 0) continue;
    const int64_t at = unit / parts;
    const Runs runs(data, at, 0, data.count);
    for (int64_t h = at * data.group; h < (at + 1) * data.group; ++h) {
      cpu::scalar::HeadAttention<T> attention(shape, data.query + h * data.dim);
      ForEachTile(data, at, runs,
                  [&](const cpu::GatheredTokens& tile) { attention.Add(tile, false); });
      attention.Finish(data.output + h * data.value_dim);
    }
  }
}

void Combine(const KernelData&, int64_t, int64_t, float*) {}

}  // namespace
}  // namespace scalar

HWY_EXPORT(VectorKernels);

Kernels ActiveKernels(DType dtype) {
  static constexpr Kernels kScalar[] = {{scalar::Attend<cpu::Float16>, scalar::Combine},
                                        {scalar::Attend<cpu::BFloat16>, scalar::Combine}};
  return cpu::ChooseKernel(dtype, kScalar, [] { return HWY_DYNAMIC_POINTER(VectorKernels)(); });
}

int64_t PartCount(const KernelData& data) {
  // Enough for the threads of a large machine, and of as many tokens as make a query's conversion
  // and the sums' way through memory small.
  constexpr int64_t kUnits = 64, kLeastTokens = 256;
  const int64_t units = data.batch * data.heads;
  const int64_t most = std::min(data.count, data.count * data.block / kLeastTokens);
  return std::max<int64_t>(1, std::min(kUnits / std::max<int64_t>(1, units), most));
}

size_t PartsSize(const KernelData& data) {
  const int64_t parts = PartCount(data);
  if (parts == 1) return 0;
  return static_cast<size_t>(data.batch * data.heads * parts) * cpu::GatherPartSize(ShapeOf(data));
}

size_t ScratchSize(const KernelData& data) { return cpu::GatherScratchSize(ShapeOf(data)); }

void RunKernel(DType dtype, KernelData data, const cpu::Parallel& parallel) {
  if (data.batch == 0) return;  // of any number of heads
  const Kernels kernels = ActiveKernels(dtype);
  const int64_t parts = PartCount(data), units = data.batch * data.heads;
  const std::unique_ptr<float[]> sums(new float[PartsSize(data)]);
  data.parts = sums.get();
  cpu::RunParts(data, kernels.attend, units * parts, 2 * data.count * data.block / parts, 1,
                parallel);
  if (parts > 1) cpu::RunParts(data, kernels.combine, units, 4 * parts, 1, parallel);
}

}  // namespace nsa::selected_attention_decode
#endif  // HWY_ONCE
