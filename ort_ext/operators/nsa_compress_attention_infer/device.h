// NsaCompressAttentionInfer on an accelerator: what is launched, and the backend that launches it.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_DEVICE_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_DEVICE_H_

#include <array>
#include <cstdint>

#include "device/launch.h"
#include "operators/nsa_compress_attention_infer/op.h"
#include "plan/dtype.h"

namespace nsa::compress_attention_decode {

// Checked and planned: at least one sequence. Device pointers.
struct Run {
  DType dtype;
  const void* query;   // [B, N1, D]
  const void* key;     // [block_num, page, N2, D]
  const void* value;   // [block_num, page, N2, Dv]
  void* output;        // [B, N1, Dv]
  void* topk_indices;  // [B, N2, k]
  std::array<int64_t, 3> query_dims;
  int64_t block_num;
  int64_t value_dim;
  const AttentionAttributes* attributes;
  const Plan* plan;
};

// The backend, as nodes.h wants it (OperatorBackend).
void RequireAclnn();
void RequireAclnnNode(const Node& node);
void LaunchAclnn(const Run& run, device::Launch& launch);

}  // namespace nsa::compress_attention_decode

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_INFER_DEVICE_H_
