// Runs a kernel in parts, on whatever threads the caller has. The split never changes a bit.
#ifndef NSA_ONNX_ORT_EXT_CPU_PARALLEL_H_
#define NSA_ONNX_ORT_EXT_CPU_PARALLEL_H_

#include <cstdint>
#include <functional>

#include "cpu/kernels.h"

namespace nsa::cpu {

// Where a kernel's parts run: at most `most_parts`, each of which reads `bytes_per_part` or more
// (as much as is read while work is handed to another thread), through run(parts, body), which
// calls body(0) .. body(parts - 1) in any order, on any threads, and returns when all have
// returned.
struct Parallel {
  int64_t most_parts;
  int64_t bytes_per_part;
  std::function<void(int64_t parts, const std::function<void(int64_t)>& body)> run;
};

// Up to `threads` threads, started for this one call: for Python's eager calls. Inside onnxruntime,
// its own pool takes their place.
Parallel OwnThreads(int64_t threads);

void RunCompress(DType dtype, const CompressData& data, const Parallel& parallel);
void RunInfer(DType dtype, const InferData& data, const Parallel& parallel);

}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_PARALLEL_H_
