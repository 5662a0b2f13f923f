// See nsa_compress.h.
#include "plan/nsa_compress.h"

#include <string_view>
#include <utility>

#include "plan/message.h"
#include "plan/windows.h"

namespace nsa::compress {
namespace {

namespace row = spec::nsa_compress::row;

// The habit that explains wrong prefix sums, if one does (_habit). It reads the lengths again: only
// the words of an error hang on what it finds.
std::string_view PrefixSumHabit(const Call& call) {
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
std::string LengthsMessage(const Call& call, std::string_view row,
                           std::initializer_list<int64_t> values) {
  return Message(row, values).append(PrefixSumHabit(call));
}

}  // namespace

std::string CheckAttributes(int64_t block, int64_t stride) {
  return CheckWindow(spec::nsa_compress::kLimits, block, stride);
}

// shape_violations
std::string CheckShapes(const Call& call) {
  if (call.input.rank != 3) return Message(row::kInputRank, {call.input.rank});
  if (call.weight.rank != 2) return Message(row::kWeightRank, {call.weight.rank});
  return CheckDims(spec::nsa_compress::kLimits, call.input[1], call.input[2], call.weight,
                   call.block, call.stride);
}

// prefix_sum_violations and row_plan
std::string MakePlan(const Call& call, std::vector<RowRun>* plan) {
  std::string error = CheckShapes(call);
  if (!error.empty()) return error;
  if (call.segments < 1) return Message(row::kSeqEmpty, {call.segments});
  std::vector<RowRun> runs;
  int64_t rows = 0, start = 0, first = 0;
  for (int64_t i = 0; i < call.segments; ++i) {
    const int64_t end = ReadOnce(call.actual_seq_len, i);
    if (i == 0) first = end;
    if (i > 0 && end < start) return LengthsMessage(call, row::kSeqDecreasing, {i, start, end});
    // From below 1 on nothing is planned: what follows is only looked at for a decrease, which
    // wins.
    const int64_t count = first < 1 ? 0 : WindowCount(end - start, call.block, call.stride);
    if (count > 0) runs.push_back({rows, count, start});
    rows += count;
    start = end;
  }
  // They do not decrease, so the first one is the first that can be below 1.
  if (first < 1) return LengthsMessage(call, row::kSeqPositive, {0, first});
  const int64_t last = call.segments - 1;
  if (start != call.input[0])
    return LengthsMessage(call, row::kSeqLast, {last, call.input[0], start});
  *plan = std::move(runs);
  return {};
}

int64_t PlannedRows(const std::vector<RowRun>& plan) {
  return plan.empty() ? 0 : plan.back().first_row + plan.back().rows;
}

}  // namespace nsa::compress
