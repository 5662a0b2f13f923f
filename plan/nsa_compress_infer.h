// What a call of NsaCompressInfer, a decode step, reads and writes, worked out and checked on the
// host.
//
// The C++ side of nsa_onnx/operators/nsa_compress_infer/contract.py: the same checks in the same
// order and words (the messages come from the generated nsa_spec.h), the same plan. A check returns
// the message of the first violation, or an empty string. Where a function has a twin there of
// another name, a comment says which.
#ifndef NSA_ONNX_PLAN_NSA_COMPRESS_INFER_H_
#define NSA_ONNX_PLAN_NSA_COMPRESS_INFER_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "nsa_spec.h"
#include "plan/caller.h"

namespace nsa::compress_decode {

// `tokens` consecutive tokens of physical page `page`, from token `offset` of it.
struct PageRun {
  int64_t page;
  int64_t offset;
  int64_t tokens;
};

// One compressed token: sequence `sequence` writes cache[slot] from the first `run_count` runs.
struct SlotWrite {
  int64_t sequence;
  int64_t slot;
  int64_t run_count;
  std::array<PageRun, spec::nsa_compress_infer::kMaxPageRuns> runs;
};

// One call of NsaCompressInfer, without its data: input [block_num, page, N, D], weight [block, N],
// slot_mapping [B], cache [slots, N, D], lengths [B]; block_table [B, max_pages] or null.
struct Call {
  Shape input;
  Shape weight;
  Shape slot_shape;
  Shape cache;
  Shape table_shape;
  int64_t block;
  int64_t stride;
  int64_t page;
  const int32_t* slot_mapping;
  const int32_t* block_table;
  const int64_t* actual_seq_len;
  int64_t sequences;
  bool has_table;

  // Pages that each sequence can name. The shapes must have been checked.
  int64_t max_pages() const;
};

// What a node can be refused for before it has seen data.
std::string CheckAttributes(int64_t block, int64_t stride, int64_t page);

// Ranks and dims; no index is read. MakePlan checks them too.
std::string CheckShapes(const Call& call);

// Checks the whole call, then fills the plan. `plan` is untouched when the call is refused. Each
// index is read once.
std::string MakePlan(const Call& call, std::vector<SlotWrite>* plan);

}  // namespace nsa::compress_decode

#endif  // NSA_ONNX_PLAN_NSA_COMPRESS_INFER_H_
