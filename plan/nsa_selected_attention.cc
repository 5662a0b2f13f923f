// See nsa_selected_attention.h.
#include "plan/nsa_selected_attention.h"

#include <utility>

#include "plan/message.h"

namespace nsa::selected_attention {
namespace {

namespace row = spec::nsa_selected_attention::row;

std::string CheckRanks(const Call& call) {
  constexpr int64_t kPadded = 4;  // [B, S, N, D], a habit
  return nsa::CheckRanks({
      {row::kQueryRank, 3, call.query.rank, kPadded, spec::hint::kTokensFirst},
      {row::kKeyRank, 3, call.key.rank, kPadded, spec::hint::kTokensFirst},
      {row::kValueRank, 3, call.value.rank, kPadded, spec::hint::kTokensFirst},
      {row::kTopkIndicesRank, 3, call.topk_shape.rank},
      {row::kActualSeqQlenRank, 1, call.actual_seq_qlen.rank},
      {row::kActualSeqKvlenRank, 1, call.actual_seq_kvlen.rank},
  });
}

std::string CheckDims(const Call& call) {
  const int64_t tokens = call.key[0], kv_heads = call.key[1];
  std::string error = nsa::CheckDims({
      {row::kQueryN1, call.attributes.heads, call.query[1]},
      {row::kKeyD, call.query[2], call.key[2]},
      {row::kValueT2, tokens, call.value[0]},
      {row::kValueN2, kv_heads, call.value[1]},
      {row::kTopkIndicesT1, call.query[0], call.topk_shape[0]},
      {row::kTopkIndicesN2, kv_heads, call.topk_shape[1]},
      {row::kTopkIndicesK, call.attributes.select_count, call.topk_shape[2]},
  });
  if (error.empty()) error = CheckKeyHeads(call.attributes.heads, kv_heads);
  if (error.empty()) error = CheckHeadDims(call.query[2], call.value[2]);
  return error;
}

// Where the sequences lie.
std::string ReadSequences(const Call& call, std::vector<Sequence>* sequences) {
  std::string error = CheckCounts(
      {{length_rows::kQuery, call.actual_seq_qlen}, {length_rows::kKey, call.actual_seq_kvlen}});
  std::vector<int64_t> rows, tokens;
  if (error.empty()) {
    error = ReadPrefixSums({{length_rows::kQuery, call.actual_seq_qlen, call.query[0], &rows},
                            {length_rows::kKey, call.actual_seq_kvlen, call.key[0], &tokens}});
  }
  if (!error.empty()) return error;
  int64_t row = 0, token = 0;
  for (size_t b = 0; b < rows.size(); ++b) {
    sequences->push_back({row, rows[b], token, tokens[b]});
    row += rows[b];
    token += tokens[b];
  }
  return {};
}

// The selected blocks, copied and checked (block_violations).
std::string ReadBlocks(const Call& call, Plan* plan) {
  if (call.topk_indices == nullptr) return {};
  const int64_t heads = call.topk_shape[1], count = call.topk_shape[2];
  const int64_t size = call.attributes.select_block;
  plan->blocks.resize(static_cast<size_t>(call.topk_shape[0] * heads * count));
  for (const Sequence& sequence : plan->sequences) {
    const int64_t blocks = CountBlocks(sequence.tokens, size);
    const int64_t begin = sequence.first_row * heads * count;
    const int64_t end = begin + sequence.rows * heads * count;
    for (int64_t i = begin; i < end; ++i) {
      const int32_t block = ReadOnce(call.topk_indices, i);
      if (block < -1 || block >= blocks) {
        return Message(row::kTopkRange,
                       {i / count / heads, i / count % heads, i % count, blocks, block});
      }
      plan->blocks[static_cast<size_t>(i)] = block;
    }
  }
  return {};
}

}  // namespace

std::string MakePlan(const Call& call, Plan* plan) {
  std::string error = CheckRanks(call);
  if (error.empty()) error = CheckAttributes(call.attributes);
  if (error.empty()) error = CheckDims(call);
  Plan made;
  if (error.empty()) error = ReadSequences(call, &made.sequences);
  if (error.empty()) error = ReadBlocks(call, &made);
  if (error.empty()) *plan = std::move(made);
  return error;
}

}  // namespace nsa::selected_attention
