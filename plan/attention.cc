// See attention.h.
#include "plan/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "plan/lengths.h"
#include "plan/message.h"

namespace nsa {
namespace {

namespace row = spec::attention_row;
constexpr spec::AttentionLimits kLimits = spec::kAttentionLimits;

// As Python writes it: without the sign of NaN, and as few digits as tell it from its neighbours.
std::string Text(double value) {
  if (std::isnan(value)) return "nan";
  char text[32];
  for (int digits = 1; digits <= 17; ++digits) {
    std::snprintf(text, sizeof text, "%.*g", digits, value);
    if (std::strtod(text, nullptr) == value) break;
  }
  return text;
}

std::string CheckScale(double scale) {
  if (std::abs(scale) <= std::numeric_limits<float>::max()) return {};  // NaN is not, either
  std::string message(row::kScaleFinite);
  constexpr std::string_view hole = "{}";
  return message.replace(message.find(hole), hole.size(), Text(scale));
}

// G = N1 / N2 (group_violations). Numbers below 1 have been refused.
std::string CheckGroup(int64_t heads, int64_t kv_heads) {
  if (heads % kv_heads) return Message(row::kHeadsDivide, {kv_heads, heads});
  const int64_t group = heads / kv_heads;
  if (group > kLimits.max_group) return Message(row::kGroupMax, {kLimits.max_group, group});
  return {};
}

// A multiple of 16 in [16, most] (_size_violations).
std::string CheckSize(std::string_view multiple, std::string_view range, int64_t size,
                      int64_t most) {
  if (size % spec::kAlignment) return Message(multiple, {size});
  if (size < spec::kAlignment || size > most) return Message(range, {most, size});
  return {};
}

// The first element below 0.
std::string CheckNotNegative(const LengthRows& rows, const std::vector<int64_t>& values) {
  int64_t i = 0;
  for (const int64_t value : values) {
    if (value < 0) return Message(rows.negative, {i, value});
    ++i;
  }
  return {};
}

}  // namespace

std::string CheckRanks(std::initializer_list<RankCheck> checks) {
  for (const RankCheck& check : checks) {
    if (check.got == check.wanted) continue;
    std::string message = Message(check.row, {check.got});
    if (check.got == check.habit) message += check.hint;
    return message;
  }
  return {};
}

// attribute_violations
std::string CheckAttributes(const AttentionAttributes& of) {
  std::string error = CheckScale(of.scale);
  if (!error.empty()) return error;
  if (of.heads < 1) return Message(row::kHeadNumMin, {of.heads});
  if (of.kv_heads) {
    if (*of.kv_heads < 1) return Message(row::kKeyValueHeadNumMin, {*of.kv_heads});
    error = CheckGroup(of.heads, *of.kv_heads);
    if (!error.empty()) return error;
  }
  error =
      CheckSize(row::kSelectMultiple, row::kSelectRange, of.select_block, kLimits.max_select_block);
  if (error.empty() && of.block) {
    error = CheckSize(row::kBlockMultiple, row::kBlockRange, *of.block, of.select_block);
    if (error.empty()) {
      error = CheckSize(row::kStrideMultiple, row::kStrideRange, *of.stride, *of.block);
    }
    if (error.empty() && of.select_block % *of.stride) {
      error = Message(row::kSelectStride, {*of.stride, of.select_block});
    }
  }
  if (!error.empty()) return error;
  if (of.select_count < 1 || of.select_count > kLimits.max_select_count) {
    return Message(row::kCountRange, {kLimits.max_select_count, of.select_count});
  }
  if (of.page) {
    error = CheckSize(row::kPageMultiple, row::kPageRange, *of.page, kLimits.max_page);
    if (!error.empty()) return error;
  }
  if (of.causal && *of.causal != 0 && *of.causal != 1) {
    return Message(row::kCausalRange, {*of.causal});
  }
  return {};
}

std::string CheckDims(std::initializer_list<DimCheck> checks) {
  for (const DimCheck& check : checks) {
    if (check.got != check.wanted) return Message(check.row, {check.wanted, check.got});
  }
  return {};
}

std::string CheckKeyHeads(int64_t heads, int64_t kv_heads) {
  if (kv_heads < 1) return Message(row::kKeyHeadsMin, {kv_heads});
  return CheckGroup(heads, kv_heads);
}

std::string CheckHeadDims(int64_t dim, int64_t value_dim) {
  std::string error = CheckSize(row::kDimMultiple, row::kDimRange, dim, kLimits.max_head_dim);
  if (!error.empty()) return error;
  return CheckSize(row::kValueDimMultiple, row::kValueDimRange, value_dim, dim);
}

// count_violations
std::string CheckCounts(std::initializer_list<GivenLengths> given) {
  for (const GivenLengths& each : given) {
    if (each.lengths.count < 1) return Message(each.rows.empty, {each.lengths.count});
  }
  const int64_t batch = given.begin()->lengths.count;
  for (const GivenLengths& each : given) {
    std::string error = CheckCount(each.rows, each.lengths, batch);
    if (!error.empty()) return error;
  }
  return {};
}

std::string CheckCount(const LengthRows& rows, const Lengths& lengths, int64_t batch) {
  return lengths.count == batch ? std::string() : Message(rows.count, {batch, lengths.count});
}

// prefix_sum_violations, in the order of the rows: first what is negative in any of them.
std::string ReadPrefixSums(std::initializer_list<PrefixSums> all) {
  for (const PrefixSums& each : all) *each.steps = CopyLengths(each.ends.values, each.ends.count);
  for (const PrefixSums& each : all) {
    std::string error = CheckNotNegative(each.rows, *each.steps);
    if (!error.empty()) return error;
  }
  for (const PrefixSums& each : all) {
    std::vector<int64_t>& ends = *each.steps;
    const auto last = static_cast<int64_t>(ends.size()) - 1;
    for (int64_t i = 1; i <= last; ++i) {
      const int64_t before = ends[static_cast<size_t>(i - 1)], end = ends[static_cast<size_t>(i)];
      if (end >= before) continue;
      return Message(each.rows.decreasing, {i, before, end}).append(LengthsHint(ends, each.total));
    }
    if (each.total && ends.back() != *each.total) {
      return Message(each.rows.last, {last, *each.total, ends.back()})
          .append(LengthsHint(ends, each.total));
    }
    for (size_t i = ends.size(); --i > 0;) ends[i] -= ends[i - 1];
  }
  return {};
}

// length_violations
std::string ReadLengths(const LengthRows& rows, const Lengths& given, int64_t pages, int64_t page,
                        std::vector<int64_t>* copy) {
  int64_t longest;
  if (__builtin_mul_overflow(pages, page, &longest)) longest = std::numeric_limits<int64_t>::max();
  std::vector<int64_t> lengths = CopyLengths(given.values, given.count);
  std::string error = CheckNotNegative(rows, lengths);
  if (!error.empty()) return error;
  for (size_t b = 0; b < lengths.size(); ++b) {
    if (lengths[b] <= longest) continue;
    return Message(rows.max, {static_cast<int64_t>(b), longest, lengths[b]})
        .append(PrefixSumsHint(lengths, longest));
  }
  *copy = std::move(lengths);
  return {};
}

// mask_violations
std::string CheckMask(std::string_view rows_row, std::string_view columns_row, const Shape& mask,
                      int64_t rows, int64_t columns) {
  if (mask[0] < rows) return Message(rows_row, {rows, mask[0]});
  if (mask[1] < columns) return Message(columns_row, {columns, mask[1]});
  return {};
}

std::string ReadPage(const int32_t* block_table, int64_t pages, int64_t b, int64_t p,
                     int64_t block_num, int64_t* page) {
  *page = ReadOnce(block_table, b * pages + p);
  if (*page >= 0 && *page < block_num) return {};
  return Message(row::kTableRange, {b, p, block_num, *page});
}

std::string ReadPages(const int32_t* block_table, int64_t pages,
                      const std::vector<int64_t>& lengths, int64_t page, int64_t block_num,
                      std::vector<int64_t>* read) {
  for (size_t b = 0; b < lengths.size(); ++b) {
    for (int64_t p = 0; p < CountBlocks(lengths[b], page); ++p) {
      std::string error = ReadPage(block_table, pages, static_cast<int64_t>(b), p, block_num,
                                   &read->emplace_back());
      if (!error.empty()) return error;
    }
  }
  return {};
}

}  // namespace nsa
