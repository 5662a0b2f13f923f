// See nsa_compress_attention_infer.h.
#include "plan/nsa_compress_attention_infer.h"

#include <utility>

namespace nsa::compress_attention_decode {
namespace {

namespace row = spec::nsa_compress_attention_infer::row;

std::string CheckShapes(const Call& call) {
  constexpr int64_t kSeveralTokens = 4, kFlatHeads = 3;  // habits
  const std::string_view split = spec::hint::kSplitHeads;
  std::string error =
      CheckRanks({{row::kQueryRank, 3, call.query.rank, kSeveralTokens, spec::hint::kOneToken},
                  {row::kKeyRank, 4, call.key.rank, kFlatHeads, split},
                  {row::kValueRank, 4, call.value.rank, kFlatHeads, split},
                  {row::kBlockTableRank, 2, call.table_shape.rank},
                  {row::kActualCmpSeqKvlenRank, 1, call.actual_cmp_seq_kvlen.rank}});
  if (error.empty()) error = CheckAttributes(call.attributes);
  if (!error.empty()) return error;
  const AttentionAttributes& of = call.attributes;
  const int64_t dim = call.query[2];
  error = CheckDims({{row::kQueryN1, of.heads, call.query[1]},
                     {row::kKeyPage, *of.page, call.key[1]},
                     {row::kKeyN2, *of.kv_heads, call.key[2]},
                     {row::kKeyD, dim, call.key[3]},
                     {row::kValueBlockNum, call.key[0], call.value[0]},
                     {row::kValuePage, *of.page, call.value[1]},
                     {row::kValueN2, *of.kv_heads, call.value[2]},
                     {row::kBlockTableB, call.query[0], call.table_shape[0]}});
  if (error.empty()) error = CheckHeadDims(dim, call.value[3]);
  return error;
}

// S of a sequence that has tokens (block_count).
int64_t BlockCount(int64_t tokens, const AttentionAttributes& of) {
  return CountBlocks((tokens - 1) * *of.stride + *of.block, of.select_block);
}

}  // namespace

std::string MakePlan(const Call& call, Plan* plan) {
  std::string error = CheckShapes(call);
  if (error.empty()) {
    error = CheckCount(length_rows::kCompressed, call.actual_cmp_seq_kvlen, call.query[0]);
  }
  if (!error.empty()) return error;
  const int64_t pages = call.table_shape[1], page = *call.attributes.page;
  std::vector<int64_t> lengths;
  error = ReadLengths(length_rows::kCompressed, call.actual_cmp_seq_kvlen, pages, page, &lengths);
  if (!error.empty()) return error;
  Plan made;
  error = ReadPages(call.block_table, pages, lengths, page, call.key[0], &made.pages);
  if (!error.empty()) return error;
  int64_t first_page = 0;
  for (const int64_t length : lengths) {
    made.sequences.push_back({length, BlockCount(length, call.attributes), first_page});
    first_page += CountBlocks(length, page);
  }
  *plan = std::move(made);
  return {};
}

}  // namespace nsa::compress_attention_decode
