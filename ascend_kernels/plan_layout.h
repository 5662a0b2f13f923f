// The plan of a launch as host and device see it: an array of int64, made by a tiling (tiling.cc of
// each operator), copied to the device, read there by the scalar unit.
#ifndef NSA_ONNX_ASCEND_KERNELS_PLAN_LAYOUT_H_
#define NSA_ONNX_ASCEND_KERNELS_PLAN_LAYOUT_H_

#include <cstdint>

namespace nsa_ascend {

// The first words of either plan. Sizes are in bytes unless a comment says otherwise.
enum PlanField : int32_t {
  kPlanWords,   // of the whole plan
  kPlanBlocks,  // vector cores to launch; 0: there is nothing to do
  kPlanHeads,   // N
  kPlanDim,     // D
  kPlanBlock,   // compress_block_size
  kPlanGroups,  // head groups
  kPlanInputElements,
  kPlanOutputElements,
  kPlanInBuffers,  // 1 or 2
  kPlanInBytes,    // of one buffer of each kind
  kPlanWorkBytes,
  kPlanSumBytes,
  kPlanOutBytes,
  kPlanWeightBytes,
  kPlanCommon,
};

// NsaCompress. `splits` pieces of the rows times `groups` head groups are the units of work.
enum CompressField : int32_t {
  kCompressStride = kPlanCommon,
  kCompressSplits,
  kCompressChunks,   // at most so many chunks of `stride` tokens in a tile
  kCompressClasses,  // residue classes that one copy brings
  kCompressHeader,   // splits + 1 ends of piece ranges follow, then the pieces
};
constexpr int32_t kPieceWords = 3;  // first output row, rows, first token

// NsaCompressInfer. The units of work are head groups times writes, in this order.
enum DecodeField : int32_t {
  kDecodeWrites = kPlanCommon,
  kDecodeSlices,  // parts in which a window is processed, 1 where it fits
  kDecodeHeader,  // the writes follow
};
constexpr int32_t kWriteRuns = 3;
constexpr int32_t kWriteWords =
    1 + 2 * kWriteRuns;  // slot, then first token and tokens of each run

}  // namespace nsa_ascend

#endif  // NSA_ONNX_ASCEND_KERNELS_PLAN_LAYOUT_H_
