// One key/value head of one sequence of a decode step, as the CPU kernel of
// NsaCompressAttentionInfer works on it, on every instruction set alike.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_UNIT_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_UNIT_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "cpu/attention.h"
#include "cpu/importance.h"
#include "operators/nsa_compress_attention_infer/kernel.h"

namespace nsa::compress_attention_decode {

struct Unit {
  size_t tokens, blocks, parts, group, dim, value_dim, count;
  size_t width;  // columns of its tile: the heads of the group
  const uint16_t* query;
  cpu::Tokens keys;
  cpu::Tokens values;
  uint16_t* output;
  int32_t* selected;
  cpu::Blocks sizes;

  Unit(const KernelData& data, int64_t index)
      : group(static_cast<size_t>(data.heads / data.kv_heads)),
        dim(static_cast<size_t>(data.dim)),
        value_dim(static_cast<size_t>(data.value_dim)),
        count(static_cast<size_t>(data.select_count)),
        width(Width(data)),
        sizes{static_cast<size_t>(data.select_block / data.stride),
              static_cast<size_t>(data.block / data.stride)} {
    const Sequence& sequence = data.sequences[index / data.kv_heads];
    const size_t unit = static_cast<size_t>(index);
    const size_t kv_heads = static_cast<size_t>(data.kv_heads), head = unit % kv_heads;
    const size_t page = static_cast<size_t>(data.page);
    const int64_t* const pages = data.pages + sequence.first_page;
    tokens = static_cast<size_t>(sequence.tokens);
    blocks = static_cast<size_t>(sequence.blocks);
    parts = (tokens + kPartTokens - 1) / kPartTokens;
    query = data.query + unit * group * dim;
    keys = {data.key + head * dim, kv_heads * dim, pages, page};
    values = {data.value + head * value_dim, kv_heads * value_dim, pages, page};
    output = data.output + unit * group * value_dim;
    selected = data.selected + unit * count;
  }

  static size_t Width(const KernelData& data) {
    return cpu::RoundUp(static_cast<size_t>(data.heads / data.kv_heads), cpu::kTileColumns);
  }

  // The blocks, from the importance of tokens; `scores` has room for all blocks. The first and the
  // last two are always selected.
  void Select(const float* importance, float* scores) const {
    cpu::ScoreBlocks(sizes, importance, tokens, blocks, scores);
    scores[0] = std::numeric_limits<float>::infinity();
    for (size_t s = blocks < 2 ? 0 : blocks - 2; s < blocks; ++s) scores[s] = scores[0];
    cpu::SelectBlocks(scores, blocks, count, selected);
  }

  // Of a sequence without compressed tokens, which is shorter than a window: its only block.
  void StoreNothing() const {
    std::fill(output, output + group * value_dim, uint16_t{0});
    std::fill(selected, selected + count, -1);
    selected[0] = 0;
  }
};

// What a unit's parts leave behind: exponentials, and per part the greatest logits, the sums of
// exponentials and the weighted sums of values. `Number` is float or const float.
template <class Number>
class UnitMemory {
 public:
  UnitMemory(const Unit& unit, Number* memory)
      : width_(unit.width),
        result_size_(unit.width * unit.value_dim),
        most_(memory + cpu::RoundUp(unit.tokens, cpu::kTileTokens) * width_),
        sums_(most_ + unit.parts * width_),
        results_(sums_ + unit.parts * width_),
        logits_(memory) {}

  static size_t Size(const KernelData& data, int64_t tokens) {
    const size_t count = static_cast<size_t>(tokens);
    const size_t parts = (count + kPartTokens - 1) / kPartTokens;
    return Unit::Width(data) * (cpu::RoundUp(count, cpu::kTileTokens) +
                                parts * (2 + static_cast<size_t>(data.value_dim)));
  }

  Number* Logits(size_t token) const { return logits_ + token * width_; }
  Number* Most(size_t part) const { return most_ + part * width_; }
  Number* Sums(size_t part) const { return sums_ + part * width_; }
  Number* Result(size_t part) const { return results_ + part * result_size_; }

 private:
  size_t width_, result_size_;
  Number* most_;
  Number* sums_;
  Number* results_;
  Number* logits_;
};

}  // namespace nsa::compress_attention_decode

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_UNIT_H_
