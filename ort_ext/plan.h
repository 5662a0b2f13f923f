// What a call reads and writes, worked out and checked on the host before anything is launched.
//
// The C++ side of nsa_onnx/operators: the same checks in the same order and words (the messages
// come from the generated nsa_spec.h), the same plans. Shared by every backend and by the C
// interface. A check returns the message of the first violation, or an empty string.
#ifndef NSA_ONNX_ORT_EXT_PLAN_H_
#define NSA_ONNX_ORT_EXT_PLAN_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "nsa_spec.h"

namespace nsa {

struct Shape {
  const int64_t* dims;
  int64_t rank;

  int64_t operator[](int64_t axis) const { return dims[axis]; }
};

// Output rows first_row .. first_row + rows - 1 read windows from first_token on, stride apart.
struct RowRun {
  int64_t first_row;
  int64_t rows;
  int64_t first_token;
};

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

// One call of NsaCompress, without its data: input [T, N, D], weight [block, N], prefix sums.
struct CompressCall {
  Shape input;
  Shape weight;
  int64_t block;
  int64_t stride;
  const int64_t* actual_seq_len;
  int64_t segments;
};

// One call of NsaCompressInfer, without its data: input [block_num, page, N, D], weight [block, N],
// slot_mapping [B], cache [slots, N, D], lengths [B]; block_table [B, max_pages] or null.
struct InferCall {
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

// The attributes alone: what a node can be refused for before it has seen data.
std::string CheckCompressAttributes(int64_t block, int64_t stride);
std::string CheckInferAttributes(int64_t block, int64_t stride, int64_t page);

// The rank of the lengths as a tensor; Python's lists have none.
std::string CheckLengthsRank(const Shape& actual_seq_len);

// Ranks and dims; no index is read. PlanCompress and PlanInfer check them too.
std::string CheckCompressShapes(const CompressCall& call);
std::string CheckInferShapes(const InferCall& call);

// Checks the whole call, then fills the plan. `plan` is untouched when the call is refused.
std::string PlanCompress(const CompressCall& call, std::vector<RowRun>* plan);
std::string PlanInfer(const InferCall& call, std::vector<SlotWrite>* plan);

// T', the number of output rows of a plan.
int64_t PlannedRows(const std::vector<RowRun>& plan);

}  // namespace nsa

#endif  // NSA_ONNX_ORT_EXT_PLAN_H_
