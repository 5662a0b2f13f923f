// Which core compresses which writes of which heads. A pure function of the shapes and of the slot
// writes that plan/nsa_compress_infer.h made; the result is the plan that the kernel reads.
#ifndef NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_TILING_H_
#define NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_TILING_H_

#include <cstdint>
#include <vector>

#include "../tiling.h"
#include "plan/nsa_compress_infer.h"

namespace nsa_ascend {

struct DecodeShape {
  int64_t pages, page, heads, dim;  // block_num, page_block_size, N, D
  int64_t slots;                    // of the cache
  int64_t block;
};

struct DecodeTiling {
  int64_t groups;      // head groups
  int64_t slices;      // of a window
  int64_t in_buffers;  // 1 or 2
  double cost;         // estimated cycles
};

// The cheapest tiling for `writes` writes, by a model that README.md states.
DecodeTiling ChooseDecodeTiling(const DecodeShape& shape, int64_t writes, const Chip& chip);

// The model's cost of one choice. Negative: it does not fit.
double DecodeCost(const DecodeShape& shape, int64_t writes, const Chip& chip,
                  const DecodeTiling& tiling);

// The plan (layout.h). `writes` is what MakePlan made of checked arguments.
std::vector<int64_t> TileDecode(const DecodeShape& shape,
                                const nsa::compress_decode::SlotWrite* writes, int64_t write_count,
                                const Chip& chip);

}  // namespace nsa_ascend

#endif  // NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_TILING_H_
