// See nsa_selected_attention_infer.h.
#include "plan/nsa_selected_attention_infer.h"

#include <algorithm>
#include <utility>

#include "plan/message.h"

namespace nsa::selected_attention_decode {
namespace {

namespace row = spec::nsa_selected_attention_infer::row;

std::string CheckRanks(const Call& call) {
  return nsa::CheckRanks({
      {row::kQueryRank, 3, call.query.rank, 4, spec::hint::kOneToken},
      {row::kKeyRank, 4, call.key.rank, 3, spec::hint::kSplitHeads},
      {row::kValueRank, 4, call.value.rank, 3, spec::hint::kSplitHeads},
      {row::kTopkIndicesRank, 3, call.topk_shape.rank},
      {row::kBlockTableRank, 2, call.table_shape.rank},
      {row::kActualSeqKvlenRank, 1, call.actual_seq_kvlen.rank},
  });
}

std::string CheckDims(const Call& call) {
  const AttentionAttributes& attributes = call.attributes;
  const int64_t batch = call.query[0];
  std::string error = nsa::CheckDims({
      {row::kQueryN1, attributes.heads, call.query[1]},
      {row::kKeyPage, *attributes.page, call.key[1]},
      {row::kKeyN2, *attributes.kv_heads, call.key[2]},
      {row::kKeyD, call.query[2], call.key[3]},
      {row::kValueBlockNum, call.key[0], call.value[0]},
      {row::kValuePage, *attributes.page, call.value[1]},
      {row::kValueN2, *attributes.kv_heads, call.value[2]},
      {row::kTopkIndicesB, batch, call.topk_shape[0]},
      {row::kTopkIndicesN2, *attributes.kv_heads, call.topk_shape[1]},
      {row::kTopkIndicesK, attributes.select_count, call.topk_shape[2]},
      {row::kBlockTableB, batch, call.table_shape[0]},
  });
  if (error.empty()) error = CheckHeadDims(call.query[2], call.value[3]);
  return error;
}

// topk_indices, copied and checked (block_violations).
std::string ReadBlocks(const Call& call, const std::vector<int64_t>& lengths, int32_t* copy) {
  const int64_t count = call.topk_shape[2], each = call.topk_shape[1] * count;  // of a sequence
  for (size_t b = 0; b < lengths.size(); ++b, copy += each) {
    const int64_t blocks = CountBlocks(lengths[b], call.attributes.select_block);
    const auto sequence = static_cast<int64_t>(b);
    for (int64_t i = 0; i < each; ++i) {
      const int32_t block = ReadOnce(call.topk_indices, sequence * each + i);
      if (block < -1 || block >= blocks) {
        return Message(row::kTopkRange, {sequence, i / count, i % count, blocks, block});
      }
      copy[i] = block;
    }
  }
  return {};
}

// Where the pages of sequence b lie, of those that its blocks need, ascending (table_violations).
std::string ReadTable(const Call& call, int64_t b, int64_t length, const int32_t* blocks,
                      int64_t block_count, std::vector<int64_t>* pages) {
  pages->assign(static_cast<size_t>(call.table_shape[1]), false);  // is it needed, then where it is
  const int64_t page = *call.attributes.page, size = call.attributes.select_block;
  for (int64_t i = 0; i < block_count; ++i) {
    const int64_t block = blocks[i];
    if (block < 0) continue;
    const int64_t end = std::min((block + 1) * size, length);
    for (int64_t p = block * size / page; p * page < end; ++p) {
      (*pages)[static_cast<size_t>(p)] = true;
    }
  }
  for (int64_t p = 0; p < call.table_shape[1]; ++p) {
    int64_t& place = (*pages)[static_cast<size_t>(p)];
    if (!place) continue;
    std::string error = ReadPage(call.block_table, call.table_shape[1], b, p, call.key[0], &place);
    if (!error.empty()) return error;
  }
  return {};
}

// The runs of one block.
void AddRuns(const AttentionAttributes& attributes, int64_t block, int64_t length,
             const std::vector<int64_t>& pages, std::vector<TokenRun>* runs) {
  const int64_t page = *attributes.page, size = attributes.select_block;
  const int64_t end = std::min((block + 1) * size, length);
  for (int64_t token = block * size; block >= 0 && token < end;) {
    const int64_t offset = token % page, tokens = std::min(page - offset, end - token);
    runs->push_back({pages[static_cast<size_t>(token / page)] * page + offset, tokens});
    token += tokens;
  }
}

std::string PlanRuns(const Call& call, const std::vector<int64_t>& lengths, Plan* plan) {
  // A step of no sequences may have any number of heads.
  if (lengths.empty()) return {};
  std::vector<int64_t> pages;
  if (call.topk_indices == nullptr) {  // nobody knows which blocks are read
    return ReadPages(call.block_table, call.table_shape[1], lengths, *call.attributes.page,
                     call.key[0], &pages);
  }
  const int64_t count = call.topk_shape[1] * call.topk_shape[2];  // of a sequence
  std::vector<int32_t> blocks(lengths.size() * static_cast<size_t>(count));
  std::string error = ReadBlocks(call, lengths, blocks.data());
  if (!error.empty()) return error;
  plan->ends.resize(blocks.size());
  const int32_t* next = blocks.data();
  int64_t* ends = plan->ends.data();
  for (size_t b = 0; b < lengths.size(); ++b, next += count, ends += count) {
    error = ReadTable(call, static_cast<int64_t>(b), lengths[b], next, count, &pages);
    if (!error.empty()) return error;
    for (int64_t i = 0; i < count; ++i) {
      AddRuns(call.attributes, next[i], lengths[b], pages, &plan->runs);
      ends[i] = static_cast<int64_t>(plan->runs.size());
    }
  }
  return {};
}

}  // namespace

std::string MakePlan(const Call& call, Plan* plan) {
  std::string error = CheckRanks(call);
  if (error.empty()) error = CheckAttributes(call.attributes);
  if (error.empty()) error = CheckDims(call);
  if (error.empty()) error = CheckCount(length_rows::kKey, call.actual_seq_kvlen, call.query[0]);
  std::vector<int64_t> lengths;
  if (error.empty()) {
    error = ReadLengths(length_rows::kKey, call.actual_seq_kvlen, call.table_shape[1],
                        *call.attributes.page, &lengths);
  }
  Plan made;
  if (error.empty()) error = PlanRuns(call, lengths, &made);
  made.lengths = std::move(lengths);
  if (error.empty()) *plan = std::move(made);
  return error;
}

}  // namespace nsa::selected_attention_decode
