// Which core compresses which writes of which heads. A pure function of the shapes and of the slot
// writes that ort_ext/plan.h made; the result is the plan that the kernel reads.
#ifndef NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_TILING_H_
#define NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_TILING_H_

#include <cstdint>
#include <vector>

#include "../tiling.h"
#include "plan.h"

namespace nsa_ascend {

struct InferShape {
  int64_t pages, page, heads, dim;  // block_num, page_block_size, N, D
  int64_t slots;                    // of the cache
  int64_t block;
};

struct InferTiling {
  int64_t groups;      // head groups
  int64_t slices;      // of a window
  int64_t in_buffers;  // 1 or 2
  double cost;         // estimated cycles, as of CompressTiling
};

// The cheapest tiling for `writes` writes, by a model that README.md states.
InferTiling ChooseInferTiling(const InferShape& shape, int64_t writes, const Chip& chip);

// The model's cost of one choice. Negative: it does not fit.
double InferCost(const InferShape& shape, int64_t writes, const Chip& chip,
                 const InferTiling& tiling);

// The plan (plan_layout.h). `writes` is what PlanInfer made of checked arguments.
std::vector<int64_t> TileInfer(const InferShape& shape, const nsa::SlotWrite* writes,
                               int64_t write_count, const Chip& chip);

}  // namespace nsa_ascend

#endif  // NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_TILING_H_
