// Which core computes which rows of which heads, and in what tiles. A pure function of the shapes
// and of the row runs that plan/nsa_compress.h made; the result is the plan that the kernel reads.
#ifndef NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_TILING_H_
#define NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_TILING_H_

#include <cstdint>
#include <vector>

#include "../tiling.h"
#include "plan/nsa_compress.h"

namespace nsa_ascend {

struct CompressShape {
  bool bfloat16;
  int64_t tokens, heads, dim;  // T, N, D
  int64_t block, stride;
};

// How a launch is cut. Every choice but the splits' exact rows follows from these.
struct CompressTiling {
  int64_t groups;      // head groups
  int64_t splits;      // of the rows
  int64_t classes;     // residue classes per copy
  int64_t in_buffers;  // 2: the next copy runs while this one is computed
  double cost;         // estimated cycles
};

// The cheapest tiling, by a model that README.md states.
CompressTiling ChooseCompressTiling(const CompressShape& shape, int64_t rows, int64_t runs,
                                    const Chip& chip);

// The model's cost of one choice, also put into it. Negative: it is not allowed.
double CompressCost(const CompressShape& shape, int64_t rows, int64_t runs, const Chip& chip,
                    CompressTiling* tiling);

// The plan (layout.h). `runs` is what MakePlan made of checked arguments.
std::vector<int64_t> TileCompress(const CompressShape& shape, const nsa::compress::RowRun* runs,
                                  int64_t run_count, const Chip& chip);

}  // namespace nsa_ascend

#endif  // NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_TILING_H_
