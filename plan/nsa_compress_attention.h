// What a call of NsaCompressAttention, a prefill, reads and writes, worked out and checked on the
// host.
//
// The C++ side of nsa_onnx/operators/nsa_compress_attention/contract.py: the same checks in the
// same order and words. A check returns the message of the first violation, or an empty string.
#ifndef NSA_ONNX_PLAN_NSA_COMPRESS_ATTENTION_H_
#define NSA_ONNX_PLAN_NSA_COMPRESS_ATTENTION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "nsa_spec.h"
#include "plan/attention.h"
#include "plan/caller.h"

namespace nsa::compress_attention {

// Queries first_row .. first_row + rows - 1 attend to compressed tokens first_token .. first_token
// + tokens - 1, which make `blocks` blocks.
struct Sequence {
  int64_t first_row;
  int64_t rows;
  int64_t first_token;
  int64_t tokens;
  int64_t blocks;
};

// One call, without its data: query [T1, N1, D], key [Tc, N2, D], value [Tc, N2, Dv], masks of rank
// 2 or none.
struct Call {
  Shape query;
  Shape key;
  Shape value;
  Shape topk_mask;
  Shape atten_mask;
  bool has_topk_mask;
  bool has_atten_mask;
  AttentionAttributes attributes;  // with block and stride
  Lengths actual_seq_qlen;
  Lengths actual_cmp_seq_kvlen;
  Lengths actual_sel_seq_kvlen;
};

// Checks the whole call, then fills the plan, one element a sequence. `plan` is untouched when the
// call is refused. Each index is read once.
std::string MakePlan(const Call& call, std::vector<Sequence>* plan);

// Of the sequence that has most.
int64_t MostTokens(const std::vector<Sequence>& plan);

}  // namespace nsa::compress_attention

#endif  // NSA_ONNX_PLAN_NSA_COMPRESS_ATTENTION_H_
