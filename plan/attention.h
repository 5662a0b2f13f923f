// What the attention stages share: the checks of a call that stand in all of their contracts.
//
// The C++ side of nsa_onnx/operators/attention.py: the same checks in the same order and words. A
// check returns the message of the first violation, or an empty string. An operator's plan does, in
// this order:
//
//   CheckRanks, CheckAttributes, CheckDims (what each dim must equal, by the operator),
//   CheckKeyHeads where key tells them, CheckHeadDims, CheckCounts, ReadPrefixSums or ReadLengths,
//   then what is the operator's own, CheckMask, ReadPage.
#ifndef NSA_ONNX_PLAN_ATTENTION_H_
#define NSA_ONNX_PLAN_ATTENTION_H_

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nsa_spec.h"
#include "plan/caller.h"

namespace nsa {

// Lengths of the caller, read through ReadOnce. In a call that has no tensors their rank is 1.
struct Lengths {
  const int64_t* values;
  int64_t count;
  int64_t rank = 1;

  static Lengths Of(const int64_t* values, const Shape& shape) {
    return {values, shape.rank == 1 ? shape[0] : 0, shape.rank};
  }
};

// A rank and what it must be. Who passes rank `habit` gets `hint`, the way out.
struct RankCheck {
  std::string_view row;
  int64_t wanted;
  int64_t got;
  int64_t habit = -1;
  std::string_view hint = {};
};
std::string CheckRanks(std::initializer_list<RankCheck> checks);

// What a node says about itself; an operator leaves out what it does not have.
struct AttentionAttributes {
  double scale;
  int64_t heads;
  int64_t select_block;
  int64_t select_count;
  std::optional<int64_t> kv_heads = {};
  std::optional<int64_t> block = {};
  std::optional<int64_t> stride = {};
  std::optional<int64_t> page = {};
  std::optional<int64_t> causal = {};
};
std::string CheckAttributes(const AttentionAttributes& attributes);

// A dim and what an attribute or another array says of it.
struct DimCheck {
  std::string_view row;
  int64_t wanted;
  int64_t got;
};
std::string CheckDims(std::initializer_list<DimCheck> checks);

// Where key alone says how many heads it has.
std::string CheckKeyHeads(int64_t heads, int64_t kv_heads);
std::string CheckHeadDims(int64_t dim, int64_t value_dim);

// The rows on one argument of lengths; some are empty where they do not apply.
struct LengthRows {
  std::string_view empty;  // prefix sums without an element
  std::string_view count;  // not one element per sequence
  std::string_view negative;
  std::string_view decreasing;  // prefix sums
  std::string_view last;        // prefix sums whose last element is known
  std::string_view max;         // of a sequence in pages
};
namespace length_rows {
namespace row = spec::attention_row;
inline constexpr LengthRows kQuery = {row::kActualSeqQlenEmpty,    {},
                                      row::kActualSeqQlenNegative, row::kActualSeqQlenDecreasing,
                                      row::kActualSeqQlenLast,     {}};
inline constexpr LengthRows kKey = {row::kActualSeqKvlenEmpty,    row::kActualSeqKvlenB,
                                    row::kActualSeqKvlenNegative, row::kActualSeqKvlenDecreasing,
                                    row::kActualSeqKvlenLast,     row::kActualSeqKvlenMax};
inline constexpr LengthRows kCompressed = {
    row::kActualCmpSeqKvlenEmpty,      row::kActualCmpSeqKvlenB,    row::kActualCmpSeqKvlenNegative,
    row::kActualCmpSeqKvlenDecreasing, row::kActualCmpSeqKvlenLast, row::kActualCmpSeqKvlenMax};
inline constexpr LengthRows kBlocks = {row::kActualSelSeqKvlenEmpty,
                                       row::kActualSelSeqKvlenB,
                                       row::kActualSelSeqKvlenNegative,
                                       row::kActualSelSeqKvlenDecreasing,
                                       {},
                                       {}};
}  // namespace length_rows

struct GivenLengths {
  const LengthRows& rows;
  const Lengths& lengths;
};
// How many elements prefix sums have: one at least, and all as many as the first.
std::string CheckCounts(std::initializer_list<GivenLengths> given);
// Lengths of `batch` sequences.
std::string CheckCount(const LengthRows& rows, const Lengths& lengths, int64_t batch);

// Prefix sums whose last element equals `total`, if that is known; `steps` gets the lengths
// themselves.
struct PrefixSums {
  const LengthRows& rows;
  const Lengths& ends;
  std::optional<int64_t> total;
  std::vector<int64_t>* steps;
};
// Checks all of a call's. Each element is read once.
std::string ReadPrefixSums(std::initializer_list<PrefixSums> all);
inline std::string ReadPrefixSums(const LengthRows& rows, const Lengths& ends,
                                  std::optional<int64_t> total, std::vector<int64_t>* steps) {
  return ReadPrefixSums({{rows, ends, total, steps}});
}

// Checks lengths of sequences that have `pages` pages of `page` tokens each, and copies them.
std::string ReadLengths(const LengthRows& rows, const Lengths& lengths, int64_t pages, int64_t page,
                        std::vector<int64_t>* copy);

// A mask that all sequences share: at least as large as the longest.
std::string CheckMask(std::string_view rows_row, std::string_view columns_row, const Shape& mask,
                      int64_t rows, int64_t columns);

// How many blocks, or pages, of `size` tokens hold them: the last one need not be full.
inline int64_t CountBlocks(int64_t tokens, int64_t size) { return (tokens + size - 1) / size; }

// Entry [b, p] of block_table [B, pages], which must be in [0, block_num). Read once.
std::string ReadPage(const int32_t* block_table, int64_t pages, int64_t b, int64_t p,
                     int64_t block_num, int64_t* page);
// Of each sequence, one after the other, the pages that hold its tokens.
std::string ReadPages(const int32_t* block_table, int64_t pages,
                      const std::vector<int64_t>& lengths, int64_t page, int64_t block_num,
                      std::vector<int64_t>* read);

}  // namespace nsa

#endif  // NSA_ONNX_PLAN_ATTENTION_H_
