// See nsa_compress.h.
#include "plan/nsa_compress.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "plan/lengths.h"
#include "plan/message.h"
#include "plan/windows.h"

namespace nsa::compress {
namespace {

namespace row = spec::nsa_compress::row;

// A row about the prefix sums of a prefill, with the habit that explains it, if one does (_habit).
std::string LengthsMessage(const std::vector<int64_t>& ends, int64_t tokens, std::string_view row,
                           std::initializer_list<int64_t> values) {
  std::string message = Message(row, values);
  if (ends.size() < 2 || *std::min_element(ends.begin(), ends.end()) < 0) return message;
  // They rise and end in T: then only the first can be wrong.
  const bool zero = std::is_sorted(ends.begin(), ends.end()) && ends.back() == tokens;
  return message.append(zero ? spec::hint::kLeadingZero : LengthsHint(ends, tokens));
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
  const std::vector<int64_t> ends = CopyLengths(call.actual_seq_len, call.segments);
  const int64_t tokens = call.input[0], last = call.segments - 1;
  const auto fall = std::is_sorted_until(ends.begin(), ends.end());
  if (fall != ends.end()) {
    return LengthsMessage(ends, tokens, row::kSeqDecreasing,
                          {fall - ends.begin(), *std::prev(fall), *fall});
  }
  if (ends.front() < 1) {
    return LengthsMessage(ends, tokens, row::kSeqPositive, {0, ends.front()});
  }
  if (ends.back() != tokens) {
    return LengthsMessage(ends, tokens, row::kSeqLast, {last, tokens, ends.back()});
  }
  std::vector<RowRun> runs;
  int64_t rows = 0, start = 0;
  for (const int64_t end : ends) {
    const int64_t count = WindowCount(end - start, call.block, call.stride);
    if (count > 0) runs.push_back({rows, count, start});
    rows += count;
    start = end;
  }
  *plan = std::move(runs);
  return {};
}

int64_t PlannedRows(const std::vector<RowRun>& plan) {
  return plan.empty() ? 0 : plan.back().first_row + plan.back().rows;
}

}  // namespace nsa::compress
