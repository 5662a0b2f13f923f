// The plan of a launch of NsaCompress, behind the words that every plan begins with
// (plan_layout.h).
#ifndef NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_LAYOUT_H_
#define NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_LAYOUT_H_

#include <cstdint>

#include "../plan_layout.h"

namespace nsa_ascend {

// `splits` pieces of the rows times `groups` head groups are the units of work.
enum CompressField : int32_t {
  kCompressStride = kPlanCommon,
  kCompressSplits,
  kCompressChunks,   // at most so many chunks of `stride` tokens in a tile
  kCompressClasses,  // residue classes that one copy brings
  kCompressHeader,   // splits + 1 ends of piece ranges follow, then the pieces
};
constexpr int32_t kPieceWords = 3;  // first output row, rows, first token

}  // namespace nsa_ascend

#endif  // NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_LAYOUT_H_
