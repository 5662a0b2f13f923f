// How the CPU kernel of NsaCompressAttention divides its work, on every instruction set alike.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_TILING_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_TILING_H_

#include <algorithm>
#include <cstddef>

#include "cpu/attention.h"
#include "cpu/importance.h"
#include "operators/nsa_compress_attention/kernel.h"

namespace nsa::compress_attention {

// The columns of a tile: `heads` heads of a group times `rows` queries. Three vectors of sixteen
// lanes are a step of the matrix product, so that 48 and 96 columns leave nothing over. With more
// of them, each key and value is loaded and converted for more columns. Where sequences are long,
// fewer columns keep the logits within the second-level cache, or at least near.
struct Tiling {
  static constexpr size_t kMostColumns = 96;
  static constexpr size_t kMostColumnsOfLong = 48;
  static constexpr size_t kLong = 2048;  // 96 columns of so many float32 logits are 768 KiB

  size_t tokens;  // of the longest sequence, to whole tiles; a sequence has no more blocks
  size_t group;
  size_t heads;
  size_t rows;
  size_t width;
  cpu::Blocks sizes;

  explicit Tiling(const KernelData& data)
      : tokens(static_cast<size_t>(data.most_tokens)),
        group(static_cast<size_t>(data.heads / data.kv_heads)),
        sizes{static_cast<size_t>(data.select_block / data.stride),
              static_cast<size_t>(data.block / data.stride)} {
    const size_t most = tokens > kLong ? kMostColumnsOfLong : kMostColumns;
    const size_t parts = (group + most - 1) / most;
    heads = parts == 1 ? group : cpu::RoundUp((group + parts - 1) / parts, cpu::kTileColumns);
    rows = std::max<size_t>(1, most / group);
    width = cpu::RoundUp(rows * heads, cpu::kTileColumns);
    tokens = cpu::RoundUp(tokens, cpu::kTileTokens);
  }
};

// Calls run(sequence, kv_head, begin, end) for the queries begin .. end - 1 of each sequence and
// key/value head that are among units first .. last - 1 (see Kernel).
template <class Run>
void ForEachRange(const KernelData& data, int64_t first, int64_t last, Run run) {
  while (first < last) {
    const int64_t kv_head = first / data.rows, row = first % data.rows;
    const int64_t end = std::min(data.rows, row + last - first);
    const Sequence* const sequences_end = data.sequences + data.sequence_count;
    const Sequence* sequence =
        std::upper_bound(data.sequences, sequences_end, row,
                         [](int64_t r, const Sequence& s) { return r < s.first_row + s.rows; });
    for (int64_t begin = row; begin < end; ++sequence) {
      const int64_t stop = std::min(end, sequence->first_row + sequence->rows);
      if (begin < stop) run(*sequence, kv_head, begin, stop);
      begin = stop;
    }
    first += end - row;
  }
}

}  // namespace nsa::compress_attention

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_TILING_H_
