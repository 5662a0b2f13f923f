// Splits a kernel's range over threads. The split never changes a bit of the result.
#ifndef NSA_ONNX_ORT_EXT_CPU_PARALLEL_H_
#define NSA_ONNX_ORT_EXT_CPU_PARALLEL_H_

#include <cstdint>
#include <functional>

namespace nsa::cpu {

// Parts worth making of `units` units with `bytes` bytes to read in all: at most `most`, at
// least 1.
int64_t PartCount(int64_t units, int64_t bytes, int64_t most);

// First unit of part `part` of `parts`; part `parts` ends the range.
int64_t PartBegin(int64_t units, int64_t parts, int64_t part);

// Units first .. last - 1 are part `part`.
using PartBody = std::function<void(int64_t part, int64_t first, int64_t last)>;

// Calls `body` for every part, on up to parts - 1 threads of its own and the caller's.
// For Python's eager calls only: inside onnxruntime, its own thread pool does this.
void RunOnThreads(int64_t units, int64_t parts, const PartBody& body);

}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_PARALLEL_H_
