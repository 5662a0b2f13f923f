// The CPU kernel of NsaCompressAttentionInfer over Google Highway, compiled once per instruction
// set.
//
// A group of heads is a tile of cpu/attention-inl.h: every key and value is read once for all of
// them, from the pages as they lie. Of each part of 1024 tokens the logits come first, then their
// exponentials with the weighted values. When all parts are done, they are brought to the greatest
// logit of all of them and added up, in their order; then the probabilities are known, and the
// importance of tokens is their sum over the heads.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "operators/nsa_compress_attention_infer/kernel.cc"
#include "operators/nsa_compress_attention_infer/kernel.h"

#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/attention-inl.h"
#include "cpu/attention.h"
#include "cpu/float16.h"
#include "cpu/float_environment.h"
#include "cpu/importance.h"
#include "cpu/scratch.h"
#include "cpu/targets.h"
#include "operators/nsa_compress_attention_infer/unit.h"

HWY_BEFORE_NAMESPACE();
namespace nsa::compress_attention_decode::HWY_NAMESPACE {

using namespace cpu::HWY_NAMESPACE;

template <class T>
void ComputePart(const KernelData& data, int64_t index, int64_t part, float* memory,
                 float* scratch) {
  const cpu::FloatEnvironment environment;
  const Unit unit(data, index);
  const UnitMemory<float> parts(unit, memory);
  AttentionTile<T> tile({unit.width, unit.dim, unit.value_dim}, cpu::AlignedToLine(scratch));
  tile.PackQueries(unit.query, unit.group, 0, unit.group);
  tile.Begin();
  const size_t begin = static_cast<size_t>(part * kPartTokens);
  const size_t end = std::min(unit.tokens, begin + static_cast<size_t>(kPartTokens));
  const auto for_each_tile = [&](auto take) {
    for (size_t j = begin; j < end; j += cpu::kTileTokens) {
      take(j, std::min(cpu::kTileTokens, end - j));
    }
  };
  for_each_tile([&](size_t j, size_t count) {
    tile.Logits(unit.keys, j, count, unit.tokens, data.scale, parts.Logits(j));
    tile.TakeMost(parts.Logits(j), count);
  });
  for_each_tile([&](size_t j, size_t count) {
    tile.TakeExponentials(parts.Logits(j), count);
    tile.AddValues(unit.values, j, count, unit.tokens, parts.Logits(j));
  });
  const size_t p = static_cast<size_t>(part);
  std::copy(tile.most(), tile.most() + unit.width, parts.Most(p));
  std::copy(tile.sums(), tile.sums() + unit.width, parts.Sums(p));
  std::copy(tile.result(), tile.result() + unit.width * unit.value_dim, parts.Result(p));
}

// For each column what the parts' numbers are multiplied by, [parts, width]: e^(greatest logit of
// the part - of all) / sum of all.
HWY_INLINE void TakeFactors(const Unit& unit, const UnitMemory<const float>& parts,
                            float* factors) {
  const DF df;
  for (size_t c = 0; c < unit.width; c += hn::Lanes(df)) {
    VF most = hn::Set(df, cpu::kHidden);
    for (size_t p = 0; p < unit.parts; ++p) most = hn::Max(most, hn::LoadU(df, parts.Most(p) + c));
    VF sum = hn::Zero(df);
    for (size_t p = 0; p < unit.parts; ++p) {
      const VF factor = Exp(hn::Sub(hn::LoadU(df, parts.Most(p) + c), most));
      sum = hn::MulAdd(hn::LoadU(df, parts.Sums(p) + c), factor, sum);
      hn::StoreU(factor, df, factors + p * unit.width + c);
    }
    const VF over_sum = hn::Div(hn::Set(df, 1.0f), sum);
    for (size_t p = 0; p < unit.parts; ++p) {
      float* const factor = factors + p * unit.width + c;
      hn::StoreU(hn::Mul(hn::LoadU(df, factor), over_sum), df, factor);
    }
  }
}

template <class T>
void Finish(const KernelData& data, int64_t index, const float* memory, float* scratch) {
  const cpu::FloatEnvironment environment;
  const DF df;
  const Unit unit(data, index);
  if (unit.tokens == 0) return unit.StoreNothing();
  const UnitMemory<const float> parts(unit, memory);
  float* const factors = cpu::AlignedToLine(scratch);
  float* const importance = factors + unit.parts * unit.width;
  TakeFactors(unit, parts, factors);
  for (size_t h = 0; h < unit.group; ++h) {
    for (size_t d = 0; d < unit.value_dim; d += hn::Lanes(df)) {
      VF sum = hn::Zero(df);
      for (size_t p = 0; p < unit.parts; ++p) {
        const VF factor = hn::Set(df, factors[p * unit.width + h]);
        sum = hn::MulAdd(hn::LoadU(df, parts.Result(p) + h * unit.value_dim + d), factor, sum);
      }
      hn::StoreU(T::Narrow(sum), DH(), unit.output + h * unit.value_dim + d);
    }
  }
  std::fill(importance, importance + unit.tokens, 0.0f);
  for (size_t p = 0; p < unit.parts; ++p) {
    const size_t begin = p * static_cast<size_t>(kPartTokens);
    const size_t count = std::min(unit.tokens - begin, static_cast<size_t>(kPartTokens));
    AddHeads(parts.Logits(begin), unit.width, count, factors + p * unit.width, unit.group,
             importance + begin);
  }
  unit.Select(importance, importance + unit.tokens);
}

const Kernel* VectorKernels() {
  static constexpr Kernel kernels[] = {{ComputePart<SimdFloat16>, Finish<SimdFloat16>},
                                       {ComputePart<SimdBFloat16>, Finish<SimdBFloat16>}};
  return kernels;
}

}  // namespace nsa::compress_attention_decode::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsa::compress_attention_decode {
namespace scalar {
namespace {

void ComputePart(const KernelData&, int64_t, int64_t, float*, float*) {}

template <class T>
void Finish(const KernelData& data, int64_t index, const float*, float* scratch) {
  const cpu::FloatEnvironment environment;
  const Unit unit(data, index);
  if (unit.tokens == 0) return unit.StoreNothing();
  float *const importance = scratch, *const p = importance + unit.tokens;
  float *const sum = p + unit.tokens, *const scores = sum + unit.value_dim;
  std::fill(importance, importance + unit.tokens, 0.0f);
  for (size_t h = 0; h < unit.group; ++h) {
    cpu::scalar::Attend<T>(unit.query + h * unit.dim, unit.dim, data.scale, unit.keys, unit.values,
                           unit.value_dim, unit.tokens, nullptr, p, sum);
    for (size_t j = 0; j < unit.tokens; ++j) importance[j] += p[j];
    uint16_t* const output = unit.output + h * unit.value_dim;
    for (size_t d = 0; d < unit.value_dim; ++d) output[d] = T::FromFloat(sum[d]);
  }
  unit.Select(importance, scores);
}

}  // namespace
}  // namespace scalar

HWY_EXPORT(VectorKernels);

Kernel ActiveKernel(DType dtype) {
  static constexpr Kernel kScalar[] = {{scalar::ComputePart, scalar::Finish<cpu::Float16>},
                                       {scalar::ComputePart, scalar::Finish<cpu::BFloat16>}};
  return cpu::ChooseKernel(dtype, kScalar, [] { return HWY_DYNAMIC_POINTER(VectorKernels)(); });
}

size_t UnitSize(const KernelData& data, int64_t tokens) {
  return UnitMemory<float>::Size(data, tokens);
}

size_t ScratchSize(const KernelData& data) {
  const size_t width = Unit::Width(data), dim = static_cast<size_t>(data.dim);
  const size_t value_dim = static_cast<size_t>(data.value_dim);
  size_t tokens = 0, blocks = 0;
  for (int64_t i = 0; i < data.sequence_count; ++i) {
    tokens = std::max(tokens, static_cast<size_t>(data.sequences[i].tokens));
    blocks = std::max(blocks, static_cast<size_t>(data.sequences[i].blocks));
  }
  const size_t parts = tokens / static_cast<size_t>(kPartTokens) + 1;
  const size_t finish = parts * width + 2 * tokens + blocks + value_dim;
  return std::max(finish, cpu::TileFloats({width, dim, value_dim})) + cpu::kUnalignedFloats;
}

namespace {

// What a call has to do, for threads to share.
struct Work {
  int64_t units;      // with tokens or without
  int64_t longest;    // tokens
  int64_t tokens;     // of all units
  int64_t bytes;      // that take as long to read
  size_t memory = 0;  // float32 elements of all units together

  explicit Work(const KernelData& data)
      : units(data.sequence_count * data.kv_heads), longest(0), tokens(0) {
    for (int64_t i = 0; i < data.sequence_count; ++i) {
      longest = std::max(longest, data.sequences[i].tokens);
      tokens += data.sequences[i].tokens * data.kv_heads;
      memory += UnitSize(data, data.sequences[i].tokens) * static_cast<size_t>(data.kv_heads);
    }
    // A core reads a byte while it does some five multiply-adds.
    const int64_t group = data.heads / data.kv_heads;
    const int64_t each = (data.dim + data.value_dim) * std::max<int64_t>(2, group / 5);
    if (__builtin_mul_overflow(tokens, each, &bytes)) bytes = INT64_MAX;
  }
};

int64_t PartCount(int64_t tokens) { return (tokens + kPartTokens - 1) / kPartTokens; }

// Each unit by one thread, whose memory stays in its cache.
void RunUnits(const Kernel& kernel, const KernelData& data, const Work& work,
              const cpu::Parallel& parallel) {
  const size_t scratch_size = ScratchSize(data);
  cpu::RunChunks(work.units, work.bytes, scratch_size + UnitSize(data, work.longest), parallel,
                 [&](int64_t unit, float* scratch) {
                   float* const memory = scratch + scratch_size;
                   const int64_t tokens = data.sequences[unit / data.kv_heads].tokens;
                   for (int64_t part = 0; part < PartCount(tokens); ++part) {
                     kernel.part(data, unit, part, memory, scratch);
                   }
                   kernel.finish(data, unit, memory, scratch);
                 });
}

// Few units: their parts by several threads.
void RunPartsOfUnits(const Kernel& kernel, const KernelData& data, const Work& work,
                     const cpu::Parallel& parallel) {
  struct Part {
    int64_t unit;
    int64_t part;
  };
  const std::unique_ptr<float[]> memory(new float[work.memory]);
  std::vector<float*> unit_memory;
  std::vector<Part> parts;
  float* next = memory.get();
  for (int64_t unit = 0; unit < work.units; ++unit) {
    const int64_t tokens = data.sequences[unit / data.kv_heads].tokens;
    unit_memory.push_back(next);
    next += UnitSize(data, tokens);
    for (int64_t part = 0; part < PartCount(tokens); ++part) parts.push_back({unit, part});
  }
  const size_t scratch_size = ScratchSize(data);
  cpu::RunChunks(static_cast<int64_t>(parts.size()), work.bytes, scratch_size, parallel,
                 [&](int64_t i, float* scratch) {
                   const Part& part = parts[static_cast<size_t>(i)];
                   kernel.part(data, part.unit, part.part,
                               unit_memory[static_cast<size_t>(part.unit)], scratch);
                 });
  // A small part of the work: the heads of the group once per token.
  cpu::RunChunks(work.units, work.bytes / 64, scratch_size, parallel,
                 [&](int64_t unit, float* scratch) {
                   kernel.finish(data, unit, unit_memory[static_cast<size_t>(unit)], scratch);
                 });
}

}  // namespace

void RunKernel(DType dtype, const KernelData& data, const cpu::Parallel& parallel) {
  const Kernel kernel = ActiveKernel(dtype);
  const Work work(data);
  // Where the longest unit would keep one thread busy while others have nothing left to do, unless
  // the memory for all at once is much.
  constexpr size_t kMostMemory = size_t{1} << 24;
  const int64_t share = work.tokens / parallel.most_parts;
  const bool divides =
      work.longest > kPartTokens && work.longest > share / 2 && work.memory <= kMostMemory;
  if (divides && parallel.most_parts > 1) {
    RunPartsOfUnits(kernel, data, work, parallel);
  } else {
    RunUnits(kernel, data, work, parallel);
  }
}

}  // namespace nsa::compress_attention_decode
#endif  // HWY_ONCE
