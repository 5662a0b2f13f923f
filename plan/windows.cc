// See windows.h.
#include "plan/windows.h"

#include "plan/message.h"

namespace nsa {

namespace row = spec::windows_row;

std::string CheckWindow(const spec::WindowLimits& limits, int64_t block, int64_t stride) {
  if (block % spec::kAlignment) return Message(row::kBlockMultiple, {block});
  if (block < limits.min_block || block > limits.max_block) {
    return Message(row::kBlockRange, {limits.min_block, limits.max_block, block});
  }
  if (stride % spec::kAlignment) return Message(row::kStrideMultiple, {stride});
  if (stride < spec::kAlignment || stride > block) {
    return Message(row::kStrideRange, {spec::kAlignment, block, stride});
  }
  return {};
}

std::string CheckDims(const spec::WindowLimits& limits, int64_t heads, int64_t dim,
                      const Shape& weight, int64_t block, int64_t stride) {
  if (weight[0] != block) {
    std::string error = Message(row::kWeightBlock, {block, weight[0]});
    const bool transposed = weight[0] == heads && weight[1] == block;
    if (transposed) error += spec::hint::kTranspose;
    return error;
  }
  if (weight[1] != heads) return Message(row::kWeightHeads, {heads, weight[1]});
  if (dim % spec::kAlignment) return Message(row::kHeadDimMultiple, {dim});
  if (dim > spec::kMaxHeadDim) return Message(row::kHeadDimMax, {dim});
  if (heads < limits.min_heads) return Message(row::kHeadsMin, {limits.min_heads, heads});
  if (heads > limits.max_heads) return Message(row::kHeadsMax, {limits.max_heads, heads});
  return CheckWindow(limits, block, stride);
}

std::string CheckLengthsRank(const Shape& actual_seq_len) {
  if (actual_seq_len.rank == 1) return {};
  return Message(row::kSeqRank, {actual_seq_len.rank});
}

}  // namespace nsa
