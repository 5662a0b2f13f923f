// The plan of a launch as host and device see it: an array of int64, made on the host by an
// operator's tiling.cc, copied to the device, read there by the scalar unit. Every plan begins with
// the words below; each operator's layout.h says what follows.
#ifndef NSA_ONNX_ASCEND_KERNELS_PLAN_LAYOUT_H_
#define NSA_ONNX_ASCEND_KERNELS_PLAN_LAYOUT_H_

#include <cstdint>

namespace nsa_ascend {

// The first words of every plan. Sizes are in bytes unless a comment says otherwise.
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

}  // namespace nsa_ascend

#endif  // NSA_ONNX_ASCEND_KERNELS_PLAN_LAYOUT_H_
