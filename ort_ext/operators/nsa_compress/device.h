// NsaCompress on an accelerator: what is launched, and the backends that launch it.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_DEVICE_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_DEVICE_H_

#include <cstdint>
#include <vector>

#include "device/launch.h"
#include "plan/dtype.h"
#include "plan/nsa_compress.h"

namespace nsa::compress {

// Checked and planned: at least one output element. Device pointers.
struct Run {
  DType dtype;
  const void* input;   // [tokens, heads, dim]
  const void* weight;  // [block, heads]
  void* output;        // [rows, heads, dim]
  int64_t tokens;
  int64_t heads;
  int64_t dim;
  int64_t rows;
  int64_t block;
  int64_t stride;
  const int64_t* actual_seq_len;  // host, prefix sums
  int64_t segments;
  const std::vector<RowRun>* plan;
};

// The two backends, as nodes.h wants them (OperatorBackend).
void RequireAclnn();
void LaunchAclnn(const Run& run, device::Launch& launch);
void RequireAscendKernels();
void LaunchAscendKernels(const Run& run, device::Launch& launch);

}  // namespace nsa::compress

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_DEVICE_H_
