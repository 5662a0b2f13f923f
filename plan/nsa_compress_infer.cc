// See nsa_compress_infer.h.
#include "plan/nsa_compress_infer.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <map>
#include <utility>

#include "plan/lengths.h"
#include "plan/message.h"
#include "plan/windows.h"

namespace nsa::compress_decode {
namespace {

namespace contract = spec::nsa_compress_infer;
namespace row = contract::row;

// max_pages * page, or the largest number where a made-up shape overflows.
int64_t LongestSequence(const Call& call) {
  int64_t longest;
  if (__builtin_mul_overflow(call.max_pages(), call.page, &longest)) {
    return std::numeric_limits<int64_t>::max();
  }
  return longest;
}

// The windows that the step completes, all but what the table says: runs hold logical pages for
// now.
std::string ReadLengths(const Call& call, std::vector<SlotWrite>* writes) {
  const int64_t longest = LongestSequence(call);
  const std::vector<int64_t> lengths = CopyLengths(call.actual_seq_len, call.sequences);
  for (int64_t b = 0; b < call.sequences; ++b) {
    const int64_t length = lengths[static_cast<size_t>(b)];
    if (length < 0 || length > longest) {
      return Message(row::kSeqRange, {b, longest, length}).append(PrefixSumsHint(lengths, longest));
    }
    if (!CompletesWindow(length, call.block, call.stride)) continue;
    SlotWrite& write = writes->emplace_back(SlotWrite{b, ReadOnce(call.slot_mapping, b), 0, {}});
    for (int64_t token = length - call.block; token < length;) {
      const int64_t offset = token % call.page;
      const int64_t tokens = std::min(call.page - offset, length - token);
      write.runs[write.run_count++] = {token / call.page, offset, tokens};
      token += tokens;
    }
  }
  return {};
}

// Where the pages of a window lie: its runs get physical pages for logical ones.
std::string ReadTable(const Call& call, SlotWrite* write) {
  const int64_t first = write->sequence * call.max_pages();
  const int64_t block_num = call.input[0];
  for (int64_t run = 0; run < write->run_count; ++run) {
    const int64_t logical = write->runs[run].page;
    int64_t page = first + logical;  // without a table, the sequence's own page
    if (call.has_table) {
      page = ReadOnce(call.block_table, page);
      if (page < 0 || page >= block_num) {
        return Message(row::kTableRange, {write->sequence, logical, block_num, page});
      }
    }
    write->runs[run].page = page;
  }
  return {};
}

// index_violations and slot_plan
std::string PlanWrites(const Call& call, std::vector<SlotWrite>* writes) {
  std::string error = ReadLengths(call, writes);
  if (!error.empty()) return error;
  const int64_t slots = call.cache[0];
  std::map<int64_t, int64_t> writers;  // of slots; not hashed: O(B log B) whatever the slots are
  for (SlotWrite& write : *writes) {
    const int64_t b = write.sequence;
    if (write.slot < 0 || write.slot >= slots) {
      return Message(row::kSlotRange, {b, slots, write.slot});
    }
    const auto [writer, alone] = writers.emplace(write.slot, b);
    if (!alone) return Message(row::kSlotDuplicate, {b, writer->second, write.slot});
    error = ReadTable(call, &write);
    if (!error.empty()) return error;
  }
  return {};
}

}  // namespace

int64_t Call::max_pages() const {
  if (has_table) return table_shape[1];
  return input[0] / std::max<int64_t>(slot_shape[0], 1);
}

std::string CheckAttributes(int64_t block, int64_t stride, int64_t page) {
  std::string error = CheckWindow(contract::kLimits, block, stride);
  if (!error.empty()) return error;
  const auto& known = contract::kPageBlockSizes;
  if (!std::count(std::begin(known), std::end(known), page)) return Message(row::kPageSize, {page});
  return {};
}

// shape_violations
std::string CheckShapes(const Call& call) {
  if (call.input.rank != 4) return Message(row::kInputRank, {call.input.rank});
  if (call.weight.rank != 2) return Message(row::kWeightRank, {call.weight.rank});
  if (call.slot_shape.rank != 1) return Message(row::kSlotRank, {call.slot_shape.rank});
  if (call.has_table && call.table_shape.rank != 2) {
    return Message(row::kTableRank, {call.table_shape.rank});
  }
  if (call.cache.rank != 3) return Message(row::kCacheRank, {call.cache.rank});

  const int64_t heads = call.input[2], dim = call.input[3], batch = call.slot_shape[0];
  std::string error =
      CheckDims(contract::kLimits, heads, dim, call.weight, call.block, call.stride);
  if (error.empty()) error = CheckAttributes(call.block, call.stride, call.page);
  if (!error.empty()) return error;
  if (call.input[1] != call.page) return Message(row::kInputPage, {call.page, call.input[1]});
  if (call.cache[1] != heads) return Message(row::kCacheHeads, {heads, call.cache[1]});
  if (call.cache[2] != dim) return Message(row::kCacheDim, {dim, call.cache[2]});
  if (call.sequences != batch) return Message(row::kSeqCount, {batch, call.sequences});
  if (call.has_table && call.table_shape[0] != batch) {
    return Message(row::kTableBatch, {batch, call.table_shape[0]});
  }
  if (!call.has_table && batch && call.input[0] % batch) {
    return Message(row::kPagesDivide, {batch, call.input[0]});
  }
  return {};
}

std::string MakePlan(const Call& call, std::vector<SlotWrite>* plan) {
  std::string error = CheckShapes(call);
  if (!error.empty()) return error;
  std::vector<SlotWrite> writes;
  error = PlanWrites(call, &writes);
  if (error.empty()) *plan = std::move(writes);
  return error;
}

}  // namespace nsa::compress_decode
