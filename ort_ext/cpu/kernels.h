// The CPU kernels: one loop, compiled once per instruction set, chosen at run time by name.
//
// Every instruction set and every split into ranges gives the same bits: float32 accumulation in
// the order j = 0, 1, 2, ..., one rounding to nearest even at the end, one NaN.
#ifndef NSA_ONNX_ORT_EXT_CPU_KERNELS_H_
#define NSA_ONNX_ORT_EXT_CPU_KERNELS_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "plan.h"

namespace nsa::cpu {

enum class DType { kFloat16 = 0, kBFloat16 = 1 };

// NsaCompress: all arrays dense, elements as their bit patterns.
struct CompressData {
  const uint16_t* input;   // [T, heads, dim]
  const uint16_t* weight;  // [block, heads]
  uint16_t* output;        // [T', heads, dim]
  int64_t heads;
  int64_t dim;
  int64_t block;
  int64_t stride;
  const RowRun* runs;
  int64_t run_count;
};

// NsaCompressInfer, in place.
struct InferData {
  const uint16_t* input;   // [block_num, page, heads, dim]
  const uint16_t* weight;  // [block, heads]
  uint16_t* cache;         // [slots, heads, dim]
  int64_t heads;
  int64_t dim;
  int64_t block;
  int64_t page;
  const SlotWrite* writes;
  int64_t write_count;
};

// Windows of one run that cover the same token at most: ceil(block / stride).
inline size_t OverlappingWindows(const CompressData& data) {
  return static_cast<size_t>((data.block + data.stride - 1) / data.stride);
}

constexpr size_t kMostWindows =
    static_cast<size_t>(spec::nsa_compress::kLimits.max_block / spec::kAlignment);

constexpr size_t kLineFloats = 64 / sizeof(float);  // of a cache line

// float32 elements that one call of a kernel needs as `scratch`; their content does not matter.
size_t ScratchSize(const CompressData& data);
size_t ScratchSize(const InferData& data);

// What one instruction set provides; the arrays are indexed by DType. No kernel allocates or
// throws.
struct Kernels {
  // There is a row, or a write, and D is not 0: RunCompress and RunInfer see to that.
  // Output rows first .. last - 1, counted over all runs.
  void (*compress[2])(const CompressData& data, int64_t first, int64_t last, float* scratch);
  // Heads first .. last - 1, counted over all writes: unit u is head u % heads of write u / heads.
  void (*infer[2])(const InferData& data, int64_t first, int64_t last, float* scratch);
};

// The plain reference.
const Kernels& ScalarKernels();

// Kernels of the instruction set in use.
const Kernels& ActiveKernels();

// Its name, and all names this machine can run, best first, comma-separated. Static strings.
const char* TargetName();
const char* TargetNames();

// Switches the whole process to `name` ("auto": the best). Returns a message if it cannot.
std::string SetTarget(const char* name);

}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_KERNELS_H_
