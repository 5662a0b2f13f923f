// What a call of NsaCompress reads and writes, worked out and checked on the host.
//
// The C++ side of nsa_onnx/operators/nsa_compress/contract.py: the same checks in the same order
// and words (the messages come from the generated nsa_spec.h), the same plan. A check returns the
// message of the first violation, or an empty string. Where a function has a twin there of another
// name, a comment says which.
#ifndef NSA_ONNX_PLAN_NSA_COMPRESS_H_
#define NSA_ONNX_PLAN_NSA_COMPRESS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "nsa_spec.h"
#include "plan/caller.h"

namespace nsa::compress {

// Output rows first_row .. first_row + rows - 1 read windows from first_token on, stride apart.
struct RowRun {
  int64_t first_row;
  int64_t rows;
  int64_t first_token;
};

// One call of NsaCompress, without its data: input [T, N, D], weight [block, N], prefix sums.
struct Call {
  Shape input;
  Shape weight;
  int64_t block;
  int64_t stride;
  const int64_t* actual_seq_len;
  int64_t segments;
};

// What a node can be refused for before it has seen data.
std::string CheckAttributes(int64_t block, int64_t stride);

// Ranks and dims; no index is read. MakePlan checks them too.
std::string CheckShapes(const Call& call);

// Checks the whole call, then fills the plan. `plan` is untouched when the call is refused. Each
// index is read once.
std::string MakePlan(const Call& call, std::vector<RowRun>* plan);

// T', the number of output rows of a plan.
int64_t PlannedRows(const std::vector<RowRun>& plan);

}  // namespace nsa::compress

#endif  // NSA_ONNX_PLAN_NSA_COMPRESS_H_
