// NsaCompressInfer on an accelerator: what is launched, and the backends that launch it.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_INFER_DEVICE_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_INFER_DEVICE_H_

#include <cstdint>
#include <vector>

#include "device/launch.h"
#include "operators/nsa_compress_infer/op.h"
#include "plan/dtype.h"
#include "plan/nsa_compress_infer.h"

namespace nsa::compress_decode {

// In place, checked and planned: at least one write, D not 0. Device pointers.
struct Run {
  DType dtype;
  const void* input;   // [block_num, page, heads, dim]
  const void* weight;  // [block, heads]
  void* cache;         // [slots, heads, dim]
  int64_t block_num;
  int64_t page;
  int64_t heads;
  int64_t dim;
  int64_t slots;
  int64_t block;
  const std::vector<SlotWrite>* plan;
  mutable bool cache_touched = false;  // set before what writes is launched
};

// The two backends, as nodes.h wants them (OperatorBackend).
void RequireAclnn();
void RequireAclnnNode(const Node& node);
void LaunchAclnn(const Run& run, device::Launch& launch);
void RequireAscendKernels();
void LaunchAscendKernels(const Run& run, device::Launch& launch);

}  // namespace nsa::compress_decode

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_INFER_DEVICE_H_
