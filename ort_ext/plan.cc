// The checks and plans of plan.h. Every function names its twin in nsa_onnx/operators.
#include "plan.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "message.h"

namespace nsa {
namespace {

namespace compress_row = spec::nsa_compress::row;
namespace infer_row = spec::nsa_compress_infer::row;

// The rows on compress_block_size and compress_stride alone (window_violations).
std::string CheckWindow(const spec::WindowLimits& limits, int64_t block, int64_t stride) {
  if (block % spec::kAlignment) return Message(compress_row::kBlockMultiple, {block});
  if (block < limits.min_block || block > limits.max_block) {
    return Message(compress_row::kBlockRange, {limits.min_block, limits.max_block, block});
  }
  if (stride % spec::kAlignment) return Message(compress_row::kStrideMultiple, {stride});
  if (stride < spec::kAlignment || stride > block) {
    return Message(compress_row::kStrideRange, {spec::kAlignment, block, stride});
  }
  return {};
}

// dim_violations: both operators share these rows and their words.
std::string CheckDims(const spec::WindowLimits& limits, int64_t heads, int64_t dim,
                      const Shape& weight, int64_t block, int64_t stride) {
  if (weight[0] != block) {
    std::string error = Message(compress_row::kWeightBlock, {block, weight[0]});
    const bool transposed = weight[0] == heads && weight[1] == block;
    if (transposed) error += spec::hint::kTranspose;
    return error;
  }
  if (weight[1] != heads) return Message(compress_row::kWeightHeads, {heads, weight[1]});
  if (dim % spec::kAlignment) return Message(compress_row::kHeadDimMultiple, {dim});
  if (dim > spec::kMaxHeadDim) return Message(compress_row::kHeadDimMax, {dim});
  if (heads < limits.min_heads) return Message(compress_row::kHeadsMin, {limits.min_heads, heads});
  if (heads > limits.max_heads) return Message(compress_row::kHeadsMax, {limits.max_heads, heads});
  return CheckWindow(limits, block, stride);
}

// A value of the caller's memory, which another thread may be writing: what is checked is what is
// used. Every index is read through this, and once.
template <class T>
T ReadOnce(const T* values, int64_t index) {
  return __atomic_load_n(values + index, __ATOMIC_RELAXED);
}

bool Triggers(int64_t length, int64_t block, int64_t stride) {
  return length >= block && (length - block) % stride == 0;
}

// The habit that explains wrong prefix sums, if one does (_habit). It reads the lengths again: only
// the words of an error hang on what it finds.
std::string_view PrefixSumHabit(const CompressCall& call) {
  const int64_t tokens = call.input[0];
  int64_t sum = 0, before = 0;
  bool rises = true;
  for (int64_t i = 0; i < call.segments; ++i) {
    const int64_t end = ReadOnce(call.actual_seq_len, i);
    if (end < 0 || __builtin_add_overflow(sum, end, &sum)) return {};
    rises = rises && end >= before;
    before = end;
  }
  if (call.segments < 2) return {};
  const bool zero = ReadOnce(call.actual_seq_len, 0) == 0;
  if (rises && zero && before == tokens) return spec::hint::kLeadingZero;
  return sum == tokens ? spec::hint::kLengths : std::string_view();
}

// A row about the lengths of a prefill, with the habit that explains it.
std::string LengthsMessage(const CompressCall& call, std::string_view row,
                           std::initializer_list<int64_t> values) {
  return Message(row, values).append(PrefixSumHabit(call));
}

// max_pages * page, or the largest number where a made-up shape overflows.
int64_t LongestSequence(const InferCall& call) {
  int64_t longest;
  if (__builtin_mul_overflow(call.max_pages(), call.page, &longest)) {
    return std::numeric_limits<int64_t>::max();
  }
  return longest;
}

// The habit that explains lengths beyond the pages, if one does (length_violations): they do not
// decrease, and their steps would fit. Read again, as in PrefixSumHabit.
std::string_view LengthsHabit(const InferCall& call, int64_t longest) {
  int64_t before = 0;
  for (int64_t b = 0; b < call.sequences; ++b) {
    const int64_t end = ReadOnce(call.actual_seq_len, b);
    if (end < before || end - before > longest) return {};
    before = end;
  }
  return call.sequences > 1 ? spec::hint::kPrefixSums : std::string_view();
}

// The windows that the step completes, all but what slots and table say: runs hold logical pages
// for now.
std::string ReadLengths(const InferCall& call, std::vector<SlotWrite>* writes) {
  const int64_t longest = LongestSequence(call);
  for (int64_t b = 0; b < call.sequences; ++b) {
    const int64_t length = ReadOnce(call.actual_seq_len, b);
    if (length < 0 || length > longest) {
      return Message(infer_row::kSeqRange, {b, longest, length})
          .append(LengthsHabit(call, longest));
    }
    if (!Triggers(length, call.block, call.stride)) continue;
    SlotWrite& write = writes->emplace_back(SlotWrite{b, 0, 0, {}});
    for (int64_t token = length - call.block; token < length;) {
      const int64_t offset = token % call.page;
      const int64_t tokens = std::min(call.page - offset, length - token);
      write.runs[write.run_count++] = {token / call.page, offset, tokens};
      token += tokens;
    }
  }
  return {};
}

// The first two writing sequences, in order of the second, that share a slot; {-1, -1} if none do.
// Sorted, not hashed: O(B log B) whatever the slots are.
std::pair<int64_t, int64_t> FirstSharedSlot(const std::vector<SlotWrite>& writes) {
  std::vector<std::pair<int64_t, int64_t>> slots;
  slots.reserve(writes.size());
  for (const SlotWrite& write : writes) slots.emplace_back(write.slot, write.sequence);
  std::sort(slots.begin(), slots.end());
  std::pair<int64_t, int64_t> shared{-1, -1};
  for (size_t i = 1, first = 0; i < slots.size(); ++i) {
    if (slots[i].first != slots[first].first) {
      first = i;
    } else if (i == first + 1 && (shared.second < 0 || slots[i].second < shared.second)) {
      shared = {slots[first].second, slots[i].second};
    }
  }
  return shared;
}

// Where the pages of a window lie: its runs get physical pages for logical ones.
std::string ReadTable(const InferCall& call, SlotWrite* write) {
  const int64_t first = write->sequence * call.max_pages();
  const int64_t block_num = call.input[0];
  for (int64_t run = 0; run < write->run_count; ++run) {
    const int64_t logical = write->runs[run].page;
    int64_t page = first + logical;  // without a table, the sequence's own page
    if (call.has_table) {
      page = ReadOnce(call.block_table, page);
      if (page < 0 || page >= block_num) {
        return Message(infer_row::kTableRange, {write->sequence, logical, block_num, page});
      }
    }
    write->runs[run].page = page;
  }
  return {};
}

// index_violations and slot_plan
std::string PlanWrites(const InferCall& call, std::vector<SlotWrite>* writes) {
  std::string error = ReadLengths(call, writes);
  if (!error.empty()) return error;
  for (SlotWrite& write : *writes) write.slot = ReadOnce(call.slot_mapping, write.sequence);
  const int64_t slots = call.cache[0];
  const std::pair<int64_t, int64_t> shared = FirstSharedSlot(*writes);
  for (SlotWrite& write : *writes) {
    const int64_t b = write.sequence;
    if (write.slot < 0 || write.slot >= slots) {
      return Message(infer_row::kSlotRange, {b, slots, write.slot});
    }
    if (b == shared.second) {
      return Message(infer_row::kSlotDuplicate, {b, shared.first, write.slot});
    }
    error = ReadTable(call, &write);
    if (!error.empty()) return error;
  }
  return {};
}

}  // namespace

int64_t InferCall::max_pages() const {
  if (has_table) return table_shape[1];
  return slot_shape[0] > 0 ? input[0] / slot_shape[0] : 0;
}

std::string CheckCompressAttributes(int64_t block, int64_t stride) {
  return CheckWindow(spec::nsa_compress::kLimits, block, stride);
}

std::string CheckInferAttributes(int64_t block, int64_t stride, int64_t page) {
  std::string error = CheckWindow(spec::nsa_compress_infer::kLimits, block, stride);
  if (!error.empty()) return error;
  const auto end = std::end(spec::nsa_compress_infer::kPageBlockSizes);
  if (std::find(std::begin(spec::nsa_compress_infer::kPageBlockSizes), end, page) == end) {
    return Message(infer_row::kPageSize, {page});
  }
  return {};
}

std::string CheckLengthsRank(const Shape& actual_seq_len) {
  if (actual_seq_len.rank == 1) return {};
  return Message("actual_seq_len must have rank 1 [B], got rank {}", {actual_seq_len.rank});
}

// shape_violations
std::string CheckCompressShapes(const CompressCall& call) {
  if (call.input.rank != 3) return Message(compress_row::kInputRank, {call.input.rank});
  if (call.weight.rank != 2) return Message(compress_row::kWeightRank, {call.weight.rank});
  return CheckDims(spec::nsa_compress::kLimits, call.input[1], call.input[2], call.weight,
                   call.block, call.stride);
}

// shape_violations
std::string CheckInferShapes(const InferCall& call) {
  if (call.input.rank != 4) return Message(infer_row::kInputRank, {call.input.rank});
  if (call.weight.rank != 2) return Message(infer_row::kWeightRank, {call.weight.rank});
  if (call.slot_shape.rank != 1) return Message(infer_row::kSlotRank, {call.slot_shape.rank});
  if (call.has_table && call.table_shape.rank != 2) {
    return Message(infer_row::kTableRank, {call.table_shape.rank});
  }
  if (call.cache.rank != 3) return Message(infer_row::kCacheRank, {call.cache.rank});

  const int64_t heads = call.input[2], dim = call.input[3], batch = call.slot_shape[0];
  std::string error = CheckDims(spec::nsa_compress_infer::kLimits, heads, dim, call.weight,
                                call.block, call.stride);
  if (error.empty()) error = CheckInferAttributes(call.block, call.stride, call.page);
  if (!error.empty()) return error;
  if (call.input[1] != call.page) return Message(infer_row::kInputPage, {call.page, call.input[1]});
  if (call.cache[1] != heads) return Message(infer_row::kCacheHeads, {heads, call.cache[1]});
  if (call.cache[2] != dim) return Message(infer_row::kCacheDim, {dim, call.cache[2]});
  if (call.sequences != batch) return Message(infer_row::kSeqCount, {batch, call.sequences});
  if (call.has_table && call.table_shape[0] != batch) {
    return Message(infer_row::kTableBatch, {batch, call.table_shape[0]});
  }
  if (!call.has_table && batch != 0 && call.input[0] % batch) {
    return Message(infer_row::kPagesDivide, {batch, call.input[0]});
  }
  return {};
}

// prefix_sum_violations and row_plan
std::string PlanCompress(const CompressCall& call, std::vector<RowRun>* plan) {
  std::string error = CheckCompressShapes(call);
  if (!error.empty()) return error;
  if (call.segments < 1) return Message(compress_row::kSeqEmpty, {call.segments});
  std::vector<RowRun> runs;
  int64_t row = 0, start = 0, first = 0;
  for (int64_t i = 0; i < call.segments; ++i) {
    const int64_t end = ReadOnce(call.actual_seq_len, i);
    if (i == 0) first = end;
    if (i > 0 && end < start)
      return LengthsMessage(call, compress_row::kSeqDecreasing, {i, start, end});
    // From below 1 on nothing is planned: what follows is only looked at for a decrease, which
    // wins.
    if (first >= 1 && end - start >= call.block) {
      const int64_t rows = 1 + (end - start - call.block) / call.stride;
      runs.push_back({row, rows, start});
      row += rows;
    }
    start = end;
  }
  // They do not decrease, so the first one is the first that can be below 1.
  if (first < 1) return LengthsMessage(call, compress_row::kSeqPositive, {0, first});
  const int64_t last = call.segments - 1;
  if (start != call.input[0])
    return LengthsMessage(call, compress_row::kSeqLast, {last, call.input[0], start});
  *plan = std::move(runs);
  return {};
}

std::string PlanInfer(const InferCall& call, std::vector<SlotWrite>* plan) {
  std::string error = CheckInferShapes(call);
  if (!error.empty()) return error;
  std::vector<SlotWrite> writes;
  error = PlanWrites(call, &writes);
  if (error.empty()) *plan = std::move(writes);
  return error;
}

int64_t PlannedRows(const std::vector<RowRun>& plan) {
  return plan.empty() ? 0 : plan.back().first_row + plan.back().rows;
}

}  // namespace nsa
