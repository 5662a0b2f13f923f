// See nsa_compress_attention.h.
#include "plan/nsa_compress_attention.h"

#include <algorithm>
#include <utility>

#include "plan/message.h"

namespace nsa::compress_attention {
namespace {

namespace row = spec::nsa_compress_attention::row;

std::string CheckShapes(const Call& call) {
  constexpr int64_t kPadded = 4;  // [B, S, N, D], a habit
  const std::string_view hint = spec::hint::kTokensFirst;
  std::string error =
      CheckRanks({{row::kQueryRank, 3, call.query.rank, kPadded, hint},
                  {row::kKeyRank, 3, call.key.rank, kPadded, hint},
                  {row::kValueRank, 3, call.value.rank, kPadded, hint},
                  {row::kTopkMaskRank, 2, call.has_topk_mask ? call.topk_mask.rank : 2},
                  {row::kAttenMaskRank, 2, call.has_atten_mask ? call.atten_mask.rank : 2},
                  {row::kActualSeqQlenRank, 1, call.actual_seq_qlen.rank},
                  {row::kActualCmpSeqKvlenRank, 1, call.actual_cmp_seq_kvlen.rank},
                  {row::kActualSelSeqKvlenRank, 1, call.actual_sel_seq_kvlen.rank}});
  if (error.empty()) error = CheckAttributes(call.attributes);
  if (!error.empty()) return error;
  const int64_t heads = call.attributes.heads, kv_heads = call.key[1], dim = call.query[2];
  error = CheckDims({{row::kQueryN1, heads, call.query[1]},
                     {row::kKeyD, dim, call.key[2]},
                     {row::kValueTc, call.key[0], call.value[0]},
                     {row::kValueN2, kv_heads, call.value[1]}});
  if (error.empty()) error = CheckKeyHeads(heads, kv_heads);
  if (error.empty()) error = CheckHeadDims(dim, call.value[2]);
  return error;
}

// S of a sequence (block_count).
int64_t BlockCount(int64_t tokens, const AttentionAttributes& of) {
  return CountBlocks(tokens * *of.stride, of.select_block);
}

std::string CheckBlocks(const AttentionAttributes& attributes, const std::vector<int64_t>& tokens,
                        const std::vector<int64_t>& blocks) {
  for (size_t b = 0; b < tokens.size(); ++b) {
    const int64_t wanted = BlockCount(tokens[b], attributes);
    if (blocks[b] == wanted) continue;
    return Message(row::kBlocks, {static_cast<int64_t>(b), tokens[b], wanted, blocks[b]});
  }
  return {};
}

int64_t Greatest(const std::vector<int64_t>& lengths) {
  return *std::max_element(lengths.begin(), lengths.end());
}

std::string CheckMasks(const Call& call, int64_t rows, int64_t tokens, int64_t blocks) {
  std::string error;
  if (call.has_topk_mask) {
    error = CheckMask(row::kTopkMaskRows, row::kTopkMaskColumns, call.topk_mask, rows, blocks);
  }
  if (error.empty() && call.has_atten_mask) {
    error = CheckMask(row::kAttenMaskRows, row::kAttenMaskColumns, call.atten_mask, rows, tokens);
  }
  return error;
}

}  // namespace

std::string MakePlan(const Call& call, std::vector<Sequence>* plan) {
  std::string error = CheckShapes(call);
  if (!error.empty()) return error;
  error = CheckCounts({{length_rows::kQuery, call.actual_seq_qlen},
                       {length_rows::kCompressed, call.actual_cmp_seq_kvlen},
                       {length_rows::kBlocks, call.actual_sel_seq_kvlen}});
  if (!error.empty()) return error;
  std::vector<int64_t> rows, tokens, blocks;
  error =
      ReadPrefixSums({{length_rows::kQuery, call.actual_seq_qlen, call.query[0], &rows},
                      {length_rows::kCompressed, call.actual_cmp_seq_kvlen, call.key[0], &tokens},
                      {length_rows::kBlocks, call.actual_sel_seq_kvlen, {}, &blocks}});
  if (error.empty()) error = CheckBlocks(call.attributes, tokens, blocks);
  if (error.empty()) error = CheckMasks(call, Greatest(rows), Greatest(tokens), Greatest(blocks));
  if (!error.empty()) return error;
  std::vector<Sequence> sequences(rows.size());
  int64_t first_row = 0, first_token = 0;
  for (size_t b = 0; b < rows.size(); ++b) {
    sequences[b] = {first_row, rows[b], first_token, tokens[b], blocks[b]};
    first_row += rows[b];
    first_token += tokens[b];
  }
  *plan = std::move(sequences);
  return {};
}

int64_t MostTokens(const std::vector<Sequence>& plan) {
  int64_t most = 0;
  for (const Sequence& sequence : plan) most = std::max(most, sequence.tokens);
  return most;
}

}  // namespace nsa::compress_attention
