// The ascend_kernels backend: our own kernels, from libnsa_ascend_kernels.so. It takes every legal
// call; the limits are the contract's.
#ifndef NSA_ONNX_ORT_EXT_DEVICE_CANN_ASCEND_KERNELS_H_
#define NSA_ONNX_ORT_EXT_DEVICE_CANN_ASCEND_KERNELS_H_

#include <cstdint>
#include <vector>

#include "ascend_kernels/launch.h"
#include "device/cann/library.h"
#include "plan/dtype.h"

namespace nsa::cann {

// Throws CannError if the library is not there or does not fit.
void RequireAscendKernels();

struct Kernels {
  decltype(&nsa_ascend_abi) abi;
  decltype(&nsa_ascend_compress_plan) compress_plan;
  decltype(&nsa_ascend_infer_plan) infer_plan;
  decltype(&nsa_ascend_plan_blocks) plan_blocks;
  decltype(&nsa_ascend_compress) compress;
  decltype(&nsa_ascend_infer) infer;
};

// Loaded once; throws like RequireAscendKernels.
const Kernels& GetKernels();

// Vector cores of the device.
int64_t VectorCores();

int32_t KernelType(DType dtype);

// The plan of a call: its size is known when it has been made.
template <class Plan, class Call>
std::vector<int64_t> MakePlan(Plan plan, const Call& call) {
  constexpr size_t kUsualWords = 4096;
  std::vector<int64_t> words(kUsualWords);
  while (true) {
    const int64_t count =
        plan(&call, VectorCores(), words.data(), static_cast<int64_t>(words.size()));
    if (count < 0) throw CannError("no memory for the plan of a launch");
    const bool complete = static_cast<size_t>(count) <= words.size();
    words.resize(static_cast<size_t>(count));
    if (complete) return words;
  }
}

}  // namespace nsa::cann

#endif  // NSA_ONNX_ORT_EXT_DEVICE_CANN_ASCEND_KERNELS_H_
