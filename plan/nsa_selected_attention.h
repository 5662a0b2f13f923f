// What a call of NsaSelectedAttention reads, worked out and checked on the host.
//
// The C++ side of nsa_onnx/operators/nsa_selected_attention/contract.py: the same checks in the
// same order and words (the messages come from the generated nsa_spec.h). A check returns the
// message of the first violation, or an empty string. Where a function has a twin there of another
// name, a comment says which.
#ifndef NSA_ONNX_PLAN_NSA_SELECTED_ATTENTION_H_
#define NSA_ONNX_PLAN_NSA_SELECTED_ATTENTION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "nsa_spec.h"
#include "plan/attention.h"
#include "plan/caller.h"

namespace nsa::selected_attention {

// One call, without its data: query [T1, N1, D], key [T2, N2, D], value [T2, N2, Dv], topk_indices
// [T1, N2, k].
struct Call {
  Shape query;
  Shape key;
  Shape value;
  Shape topk_shape;
  AttentionAttributes attributes;
  const int32_t* topk_indices;  // null: not to be looked at
  Lengths actual_seq_qlen;
  Lengths actual_seq_kvlen;
};

// A sequence: its rows first_row .. first_row + rows - 1 of query, its tokens of key and value.
struct Sequence {
  int64_t first_row;
  int64_t rows;
  int64_t first_token;
  int64_t tokens;
};

// The sequences, in order, and topk_indices as they were checked.
struct Plan {
  std::vector<Sequence> sequences;
  std::vector<int32_t> blocks;  // [T1, N2, k]; -1: none; empty if they were not looked at
};

// Checks the whole call, then fills the plan. `plan` is untouched when the call is refused. Each
// index is read once.
std::string MakePlan(const Call& call, Plan* plan);

}  // namespace nsa::selected_attention

#endif  // NSA_ONNX_PLAN_NSA_SELECTED_ATTENTION_H_
