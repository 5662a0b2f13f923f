// Tensors, int arrays and executors of aclnn: what libnnopbase.so and libopapi.so share.
#ifndef NSA_ONNX_TESTS_SIM_NNOPBASE_H_
#define NSA_ONNX_TESTS_SIM_NNOPBASE_H_

#include <functional>
#include <vector>

#include "simulator.h"

struct aclTensor {
  std::vector<std::int64_t> dims;
  aclDataType type;
  bool contiguous;
  void* data;  // device address, the offset included
};

struct aclIntArray {
  std::vector<std::int64_t> values;
};

struct aclOpExecutor {
  const char* function;                   // the aclnn function that may execute it
  std::vector<const aclTensor*> tensors;  // must still be alive then
  std::uint64_t workspace_size;
  std::function<void(std::byte* workspace)> kernel;  // runs on the stream's worker
};

#pragma GCC visibility push(default)
namespace nsa_sim {

std::int64_t element_count(const aclTensor& tensor);

// The second step of every aclnn function. The executor is gone afterwards, also when the call
// failed, as the vendor's is.
aclnnStatus execute(const char* function, void* workspace, std::uint64_t workspace_size,
                    aclOpExecutor* executor, aclrtStream stream);

}  // namespace nsa_sim
#pragma GCC visibility pop

#endif  // NSA_ONNX_TESTS_SIM_NNOPBASE_H_
