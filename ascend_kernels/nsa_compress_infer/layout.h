// The plan of a launch of NsaCompressInfer, behind the words that every plan begins with
// (plan_layout.h).
#ifndef NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_LAYOUT_H_
#define NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_LAYOUT_H_

#include <cstdint>

#include "../plan_layout.h"

namespace nsa_ascend {

// The units of work are head groups times writes, in this order.
enum DecodeField : int32_t {
  kDecodeWrites = kPlanCommon,
  kDecodeSlices,  // parts in which a window is processed, 1 where it fits
  kDecodeHeader,  // the writes follow
};
constexpr int32_t kWriteRuns = 3;
constexpr int32_t kWriteWords =
    1 + 2 * kWriteRuns;  // slot, then first token and tokens of each run

}  // namespace nsa_ascend

#endif  // NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_LAYOUT_H_
