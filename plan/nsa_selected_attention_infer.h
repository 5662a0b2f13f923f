// What a call of NsaSelectedAttentionInfer, a decode step, reads, worked out and checked on the
// host.
//
// The C++ side of nsa_onnx/operators/nsa_selected_attention_infer/contract.py: the same checks in
// the same order and words (the messages come from the generated nsa_spec.h). A check returns the
// message of the first violation, or an empty string. Where a function has a twin there of another
// name, a comment says which.
#ifndef NSA_ONNX_PLAN_NSA_SELECTED_ATTENTION_INFER_H_
#define NSA_ONNX_PLAN_NSA_SELECTED_ATTENTION_INFER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "nsa_spec.h"
#include "plan/attention.h"
#include "plan/caller.h"

namespace nsa::selected_attention_decode {

// One call, without its data: query [B, N1, D], key [block_num, page, N2, D], value [block_num,
// page, N2, Dv], topk_indices [B, N2, k], block_table [B, P], lengths [B].
struct Call {
  Shape query;
  Shape key;
  Shape value;
  Shape topk_shape;
  Shape table_shape;
  AttentionAttributes attributes;
  const int32_t* topk_indices;  // null: not to be looked at, any page of a sequence may be read
  const int32_t* block_table;
  Lengths actual_seq_kvlen;
};

// `tokens` consecutive tokens of the pages, from token `first` on: page * page_block_size + offset.
struct TokenRun {
  int64_t first;
  int64_t tokens;
};

// The tokens of every selected block, by sequence, head and place in topk_indices.
struct Plan {
  std::vector<int64_t> lengths;  // of the sequences
  // Empty if the blocks were not looked at.
  std::vector<TokenRun> runs;
  std::vector<int64_t> ends;  // [B, N2, k]: the end of a block's runs, where the next one's begin
};

// Checks the whole call, then fills the plan. `plan` is untouched when the call is refused. Each
// index is read once; of block_table only what the plan needs.
std::string MakePlan(const Call& call, Plan* plan);

}  // namespace nsa::selected_attention_decode

#endif  // NSA_ONNX_PLAN_NSA_SELECTED_ATTENTION_INFER_H_
