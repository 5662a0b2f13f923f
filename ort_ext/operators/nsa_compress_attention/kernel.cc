// The CPU kernel of NsaCompressAttention over Google Highway, compiled once per instruction set.
//
// Nearly all of its time are the two matrix products, which are computed in tiles: some queries of
// a group of heads (the columns) against 64 compressed tokens (cpu/attention-inl.h). For one set of
// columns the kernel goes over the tokens three times:
//
//   1. logits, masked, and the greatest of each column;
//   2. exponentials, their sum, and the weighted sum of the values;
//   3. the importance of tokens: the probabilities, added up over the heads of the group.
//
// The third needs the sum of the second, and the second the maximum of the first. So the logits of
// these columns stay in memory meanwhile, at most 96 per token and thread: to write and read a
// vector of them takes a few cycles, to compute it again takes D. A running maximum would save the
// first pass, but not the third.
//
// A mask is looked at once per tile. Tokens that it hides from all queries of the tile are left out
// where that changes nothing: their probability is exactly 0 where a query sees something at all,
// and 0 times a finite value is 0.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "operators/nsa_compress_attention/kernel.cc"
#include "operators/nsa_compress_attention/kernel.h"

#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "cpu/attention-inl.h"
#include "cpu/attention.h"
#include "cpu/float16.h"
#include "cpu/float_environment.h"
#include "cpu/importance.h"
#include "cpu/scratch.h"
#include "cpu/targets.h"
#include "operators/nsa_compress_attention/tiling.h"

HWY_BEFORE_NAMESPACE();
namespace nsa::compress_attention::HWY_NAMESPACE {

using namespace cpu::HWY_NAMESPACE;

template <class T>
class Prefill {
 public:
  Prefill(const KernelData& data, float* scratch)
      : data_(data),
        tiling_(data),
        heads_(static_cast<size_t>(data.heads)),
        kv_heads_(static_cast<size_t>(data.kv_heads)),
        dim_(static_cast<size_t>(data.dim)),
        value_dim_(static_cast<size_t>(data.value_dim)),
        count_(static_cast<size_t>(data.select_count)),
        logits_(cpu::AlignedToLine(scratch)),
        importance_(logits_ + tiling_.width * tiling_.tokens),
        scores_(importance_ + tiling_.rows * tiling_.tokens),
        factors_(scores_ + tiling_.tokens),
        sight_(reinterpret_cast<Sight*>(factors_ + tiling_.width)),
        tile_scratch_(factors_ + tiling_.width + tiling_.tokens / cpu::kTileTokens) {}

  // Queries first .. last - 1, of one sequence and one key/value head.
  void Run(const Sequence& sequence, size_t kv_head, size_t first, size_t last) {
    tokens_ = static_cast<size_t>(sequence.tokens);
    const size_t begin = static_cast<size_t>(sequence.first_row);
    const size_t token = static_cast<size_t>(sequence.first_token);
    keys_ = {data_.key + (token * kv_heads_ + kv_head) * dim_, kv_heads_ * dim_, nullptr, 0};
    values_ = {data_.value + (token * kv_heads_ + kv_head) * value_dim_, kv_heads_ * value_dim_,
               nullptr, 0};
    for (size_t row = first; row < last; row += rows_) {
      rows_ = std::min(tiling_.rows, last - row);
      if (tokens_ == 0) {
        Nothing(row, kv_head);
        continue;
      }
      for (size_t head = 0; head < tiling_.group; head += tiling_.heads) {
        Columns(row, row - begin, kv_head * tiling_.group, head);
      }
      for (size_t r = 0; r < rows_; ++r) {
        Select(sequence, r, row - begin + r, ((row + r) * kv_heads_ + kv_head) * count_);
      }
    }
  }

 private:
  // What the queries of a tile see of 64 tokens: of tokens begin .. end - 1, from a multiple of
  // eight on, some; of the others none. Bytes, so that they can lie in scratch memory.
  struct Sight {
    uint8_t begin;
    uint8_t end;
    uint8_t mixed;  // some of the queries do not see some of these
    uint8_t unused;
  };
  static_assert(sizeof(Sight) == sizeof(float) && cpu::kTileTokens < 256);

  size_t TileCount() const { return cpu::RoundUp(tokens_, cpu::kTileTokens) / cpu::kTileTokens; }
  size_t TileSize(size_t tile) const {
    return std::min(cpu::kTileTokens, tokens_ - tile * cpu::kTileTokens);
  }
  float* Logits(size_t token) const { return logits_ + token * width_; }
  const uint8_t* MaskRow(size_t query) const {
    return data_.atten_mask + query * static_cast<size_t>(data_.atten_pitch);
  }

  // A sequence without compressed tokens.
  void Nothing(size_t row, size_t kv_head) const {
    for (size_t r = row; r < row + rows_; ++r) {
      uint16_t* const out = data_.output + (r * heads_ + kv_head * tiling_.group) * value_dim_;
      std::fill(out, out + tiling_.group * value_dim_, uint16_t{0});
      int32_t* const selected = data_.selected + (r * kv_heads_ + kv_head) * count_;
      std::fill(selected, selected + count_, -1);
    }
  }

  // The heads from `head` of the group on, as many as a tile has, of rows_ queries from `row` on,
  // which is `query` in its sequence.
  void Columns(size_t row, size_t query, size_t group_head, size_t head) {
    tile_heads_ = std::min(tiling_.heads, tiling_.group - head);
    const size_t columns = rows_ * tile_heads_, first = row * heads_ + group_head + head;
    width_ = cpu::RoundUp(columns, cpu::kTileColumns);
    AttentionTile<T> tile({width_, dim_, value_dim_}, tile_scratch_);
    tile.PackQueries(data_.query + first * dim_, tile_heads_, heads_ * dim_, columns);
    tile.Begin();
    for (size_t t = 0; t < TileCount(); ++t) {
      sight_[t] = Look(query, t);
      TakeLogits(tile, query, t);
    }
    if (data_.atten_mask != nullptr) Complete(tile, columns);
    for (size_t t = 0; t < TileCount(); ++t) {
      const size_t begin = t * cpu::kTileTokens + sight_[t].begin;
      const size_t count = sight_[t].end - sight_[t].begin;
      if (count == 0) continue;
      tile.TakeExponentials(Logits(begin), count);
      tile.AddValues(values_, begin, count, begin + count, Logits(begin));
    }
    for (size_t c = 0; c < columns; ++c) {
      factors_[c] = 1.0f / tile.sums()[c];
      const size_t at = first + c / tile_heads_ * heads_ + c % tile_heads_;
      tile.StoreColumn(c, data_.output + at * value_dim_);
    }
    for (size_t r = 0; r < rows_; ++r) AddImportance(r, head == 0);
  }

  Sight Look(size_t query, size_t t) const {
    const size_t first = t * cpu::kTileTokens, size = TileSize(t);
    if (data_.atten_mask == nullptr) return {0, static_cast<uint8_t>(size), 0, 0};
    uint8_t seen[cpu::kTileTokens] = {}, hidden[cpu::kTileTokens] = {};
    for (size_t r = 0; r < rows_; ++r) {
      const uint8_t* const mask = MaskRow(query + r) + first;
      for (size_t j = 0; j < size; ++j) {
        seen[j] |= mask[j] == 0;
        hidden[j] |= mask[j] != 0;
      }
    }
    size_t begin = 0, end = size;
    while (end > 0 && !seen[end - 1]) --end;
    if (end == 0) return {0, 0, 0, 0};
    while (!seen[begin]) ++begin;
    begin -= begin % cpu::kTileRows;
    const bool mixed = std::any_of(hidden + begin, hidden + end, [](uint8_t h) { return h != 0; });
    return {static_cast<uint8_t>(begin), static_cast<uint8_t>(end), mixed, 0};
  }

  void TakeLogits(AttentionTile<T>& tile, size_t query, size_t t) {
    const Sight sight = sight_[t];
    const size_t begin = t * cpu::kTileTokens + sight.begin, count = sight.end - sight.begin;
    if (count == 0) return;
    tile.Logits(keys_, begin, count, begin + count, data_.scale, Logits(begin));
    if (sight.mixed) {
      for (size_t r = 0; r < rows_; ++r) {
        const uint8_t* const mask = MaskRow(query + r);
        for (size_t j = begin; j < begin + count; ++j) {
          if (mask[j] == 0) continue;
          float* const hidden = Logits(j) + r * tile_heads_;
          std::fill(hidden, hidden + tile_heads_, cpu::kHidden);
        }
      }
    }
    tile.TakeMost(Logits(begin), count);
  }

  // Takes in the hidden tokens that may matter: all, where a column sees nothing or not a number,
  // and those whose values are not finite.
  void Complete(AttentionTile<T>& tile, size_t columns) {
    const float* const most = tile.most();
    const bool all =
        !std::all_of(most, most + columns, [](float logit) { return logit > cpu::kHidden; });
    for (size_t t = 0; t < TileCount(); ++t) {
      Sight& sight = sight_[t];
      const size_t first = t * cpu::kTileTokens, size = TileSize(t);
      const size_t begin = sight.begin, end = sight.end;
      if (end - begin == size) continue;
      if (!all && ValuesAreFinite(first, begin) && ValuesAreFinite(first + end, size - end)) {
        continue;
      }
      std::fill(Logits(first), Logits(first + begin), cpu::kHidden);
      std::fill(Logits(first + end), Logits(first + size), cpu::kHidden);
      sight.begin = 0;
      sight.end = static_cast<uint8_t>(size);
    }
  }

  bool ValuesAreFinite(size_t first, size_t count) const {
    const hn::CappedTag<uint16_t, 16> du;
    const auto infinity = hn::Set(du, T::kInfinity);
    auto special = hn::MaskFalse(du);
    for (size_t j = first; j < first + count; ++j) {
      const uint16_t* const value = values_.At(j);
      for (size_t d = 0; d < value_dim_; d += hn::Lanes(du)) {
        const auto exponent = hn::And(hn::LoadU(du, value + d), infinity);
        special = hn::Or(special, hn::Eq(exponent, infinity));
      }
    }
    return hn::AllFalse(du, special);
  }

  // Adds this tile's heads of query r to the importance of tokens. What was left out has the
  // probability 0, or NaN if a head's sum is that.
  void AddImportance(size_t r, bool begins) {
    float* const importance = importance_ + r * tiling_.tokens;
    const float* const factors = factors_ + r * tile_heads_;
    if (begins) std::fill(importance, importance + tokens_, 0.0f);
    float nothing = 0;
    for (size_t h = 0; h < tile_heads_; ++h) nothing += 0.0f * factors[h];
    for (size_t t = 0; t < TileCount(); ++t) {
      const size_t first = t * cpu::kTileTokens;
      const size_t begin = first + sight_[t].begin, end = first + sight_[t].end;
      const size_t size = TileSize(t);
      for (size_t j = first; j < begin; ++j) importance[j] += nothing;
      AddHeads(Logits(begin) + r * tile_heads_, width_, end - begin, factors, tile_heads_,
               importance + begin);
      for (size_t j = end; j < first + size; ++j) importance[j] += nothing;
    }
  }

  void Select(const Sequence& sequence, size_t r, size_t query, size_t to) const {
    const size_t blocks = static_cast<size_t>(sequence.blocks);
    cpu::ScoreBlocks(tiling_.sizes, importance_ + r * tiling_.tokens, tokens_, blocks, scores_);
    if (data_.topk_mask != nullptr) {
      const uint8_t* const mask = data_.topk_mask + query * static_cast<size_t>(data_.topk_pitch);
      for (size_t s = 0; s < blocks; ++s) {
        if (mask[s] != 0) scores_[s] = std::numeric_limits<float>::infinity();
      }
    }
    cpu::SelectBlocks(scores_, blocks, count_, data_.selected + to);
  }

  const KernelData& data_;
  const Tiling tiling_;
  size_t heads_, kv_heads_, dim_, value_dim_, count_;
  float* logits_;      // [tokens, width_]
  float* importance_;  // [rows, tokens]
  float* scores_;      // [blocks]
  float* factors_;     // [width]: 1 / sum
  Sight* sight_;       // per 64 tokens
  float* tile_scratch_;
  cpu::Tokens keys_, values_;
  size_t tokens_ = 0;      // of the sequence
  size_t rows_ = 1;        // queries of the tile
  size_t tile_heads_ = 0;  // heads of the tile
  size_t width_ = 0;       // columns of the tile
};

template <class T>
void Compute(const KernelData& data, int64_t first, int64_t last, float* scratch) {
  const cpu::FloatEnvironment environment;
  Prefill<T> prefill(data, scratch);
  ForEachRange(data, first, last,
               [&](const Sequence& sequence, int64_t kv_head, int64_t begin, int64_t end) {
                 prefill.Run(sequence, static_cast<size_t>(kv_head), static_cast<size_t>(begin),
                             static_cast<size_t>(end));
               });
}

const Kernel* VectorKernels() {
  static constexpr Kernel kernels[] = {Compute<SimdFloat16>, Compute<SimdBFloat16>};
  return kernels;
}

}  // namespace nsa::compress_attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsa::compress_attention {
namespace scalar {
namespace {

// One query of one key/value head.
template <class T>
void ComputeUnit(const KernelData& data, const Sequence& sequence, size_t kv_head, size_t row,
                 float* scratch) {
  const size_t tokens = static_cast<size_t>(sequence.tokens);
  const size_t blocks = static_cast<size_t>(sequence.blocks);
  const size_t kv_heads = static_cast<size_t>(data.kv_heads);
  const size_t dim = static_cast<size_t>(data.dim), value_dim = static_cast<size_t>(data.value_dim);
  const size_t group = static_cast<size_t>(data.heads / data.kv_heads);
  const size_t query = row - static_cast<size_t>(sequence.first_row);
  const size_t count = static_cast<size_t>(data.select_count);
  const size_t first = static_cast<size_t>(sequence.first_token) * kv_heads + kv_head;
  const cpu::Tokens keys{data.key + first * dim, kv_heads * dim, nullptr, 0};
  const cpu::Tokens values{data.value + first * value_dim, kv_heads * value_dim, nullptr, 0};
  const uint8_t* const hidden =
      data.atten_mask ? data.atten_mask + query * static_cast<size_t>(data.atten_pitch) : nullptr;
  float *const p = scratch, *const importance = p + tokens, *const scores = importance + tokens;
  float* const sum = scores + blocks;
  std::fill(importance, importance + tokens, 0.0f);
  for (size_t h = 0; h < group; ++h) {
    const size_t head = row * static_cast<size_t>(data.heads) + kv_head * group + h;
    cpu::scalar::Attend<T>(data.query + head * dim, dim, data.scale, keys, values, value_dim,
                           tokens, hidden, p, sum);
    for (size_t j = 0; j < tokens; ++j) importance[j] += p[j];
    for (size_t d = 0; d < value_dim; ++d) data.output[head * value_dim + d] = T::FromFloat(sum[d]);
  }
  cpu::ScoreBlocks(Tiling(data).sizes, importance, tokens, blocks, scores);
  for (size_t s = 0; s < blocks && data.topk_mask != nullptr; ++s) {
    if (data.topk_mask[query * static_cast<size_t>(data.topk_pitch) + s] != 0) {
      scores[s] = std::numeric_limits<float>::infinity();
    }
  }
  cpu::SelectBlocks(scores, blocks, count, data.selected + (row * kv_heads + kv_head) * count);
}

template <class T>
void Compute(const KernelData& data, int64_t first, int64_t last, float* scratch) {
  const cpu::FloatEnvironment environment;
  ForEachRange(data, first, last,
               [&](const Sequence& sequence, int64_t kv_head, int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row) {
                   ComputeUnit<T>(data, sequence, static_cast<size_t>(kv_head),
                                  static_cast<size_t>(row), scratch);
                 }
               });
}

}  // namespace
}  // namespace scalar

HWY_EXPORT(VectorKernels);

Kernel ActiveKernel(DType dtype) {
  static constexpr Kernel kScalar[] = {scalar::Compute<cpu::Float16>,
                                       scalar::Compute<cpu::BFloat16>};
  return cpu::ChooseKernel(dtype, kScalar, [] { return HWY_DYNAMIC_POINTER(VectorKernels)(); });
}

size_t ScratchSize(const KernelData& data) {
  const Tiling tiling(data);
  // In the order of Prefill's members; the scalar kernel needs less.
  return tiling.width * tiling.tokens + tiling.rows * tiling.tokens + tiling.tokens + tiling.width +
         tiling.tokens / cpu::kTileTokens +
         cpu::TileFloats(
             {tiling.width, static_cast<size_t>(data.dim), static_cast<size_t>(data.value_dim)}) +
         cpu::kUnalignedFloats;
}

void RunKernel(DType dtype, const KernelData& data, const cpu::Parallel& parallel) {
  const int64_t units = data.rows * data.kv_heads;
  const int64_t chunk = static_cast<int64_t>(Tiling(data).rows);
  const Kernel kernel = ActiveKernel(dtype);
  // A core does some five multiply-adds in the time that it takes to read a byte.
  double work = 0;
  for (int64_t i = 0; i < data.sequence_count; ++i) {
    work += static_cast<double>(data.sequences[i].rows * data.heads) *
            static_cast<double>(data.sequences[i].tokens * (data.dim + data.value_dim)) / 5;
  }
  const int64_t bytes = static_cast<int64_t>(std::min(work, 1e15));
  cpu::RunChunks((units + chunk - 1) / chunk, bytes, ScratchSize(data), parallel,
                 [&](int64_t index, float* scratch) {
                   kernel(data, index * chunk, std::min(units, (index + 1) * chunk), scratch);
                 });
}

}  // namespace nsa::compress_attention
#endif  // HWY_ONCE
