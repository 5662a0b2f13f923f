// NsaCompressAttention on an accelerator: what is launched, and the backend that launches it.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_DEVICE_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_DEVICE_H_

#include <array>
#include <cstdint>
#include <vector>

#include "device/launch.h"
#include "operators/nsa_compress_attention/op.h"
#include "plan/dtype.h"

namespace nsa::compress_attention {

// A mask that may be left out: then `data` is null.
struct Mask {
  const void* data = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
};

// Checked and planned: at least one row. Device pointers.
struct Run {
  DType dtype;
  const void* query;  // [rows, N1, D]
  const void* key;    // [tokens, N2, D]
  const void* value;  // [tokens, N2, Dv]
  Mask atten_mask;
  Mask topk_mask;
  void* output;        // [rows, N1, Dv]
  void* topk_indices;  // [rows, N2, k]
  std::array<int64_t, 3> query_dims;
  std::array<int64_t, 3> key_dims;
  int64_t value_dim;
  const AttentionAttributes* attributes;
  const std::vector<Sequence>* sequences;
};

// The backend, as nodes.h wants it (OperatorBackend).
void RequireAclnn();
void RequireAclnnNode(const Node& node);
void LaunchAclnn(const Run& run, device::Launch& launch);

}  // namespace nsa::compress_attention

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_DEVICE_H_
