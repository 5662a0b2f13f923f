// What a call of NsaCompressAttentionInfer, a decode step, reads and writes, worked out and checked
// on the host.
//
// The C++ side of nsa_onnx/operators/nsa_compress_attention_infer/contract.py: the same checks in
// the same order and words. A check returns the message of the first violation, or an empty string.
#ifndef NSA_ONNX_PLAN_NSA_COMPRESS_ATTENTION_INFER_H_
#define NSA_ONNX_PLAN_NSA_COMPRESS_ATTENTION_INFER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "nsa_spec.h"
#include "plan/attention.h"
#include "plan/caller.h"

namespace nsa::compress_attention_decode {

// The query of a sequence attends to its `tokens` compressed tokens, which cover `blocks` blocks.
struct Sequence {
  int64_t tokens;
  int64_t blocks;
  int64_t first_page;  // in Plan::pages
};

struct Plan {
  std::vector<Sequence> sequences;
  std::vector<int64_t> pages;  // of each sequence, one after the other, those that it reads
};

// One call, without its data: query [B, N1, D], key [block_num, page, N2, D], value [block_num,
// page, N2, Dv], block_table [B, P], lengths [B].
struct Call {
  Shape query;
  Shape key;
  Shape value;
  Shape table_shape;
  AttentionAttributes attributes;  // all but causal
  const int32_t* block_table;
  Lengths actual_cmp_seq_kvlen;
};

// Checks the whole call, then fills the plan. `plan` is untouched when the call is refused. Each
// index is read once, and of block_table only what is used.
std::string MakePlan(const Call& call, Plan* plan);

}  // namespace nsa::compress_attention_decode

#endif  // NSA_ONNX_PLAN_NSA_COMPRESS_ATTENTION_INFER_H_
