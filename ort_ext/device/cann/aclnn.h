// The aclnn backend: CANN's own operators in their two-step form, within their limits. What every
// operator's call needs; the calls themselves are with the operators (operators/*/aclnn.cc).
#ifndef NSA_ONNX_ORT_EXT_DEVICE_CANN_ACLNN_H_
#define NSA_ONNX_ORT_EXT_DEVICE_CANN_ACLNN_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "device/cann/library.h"
#include "device/launch.h"
#include "plan/dtype.h"

namespace nsa::cann {

// Throws CannError if this machine does not have the vendor's operators.
void RequireAclnn();

// The kinds of lengths that the vendor's actSeqLenType names.
enum LengthsKind : int64_t { kPrefixSums = 0, kLengths = 1 };

// Throws CannError: "the aclnn backend <what>", and what to use instead.
[[noreturn]] void RefuseAclnn(const std::string& what);

// Refuses more elements than the vendor's operators count, in `rows` rows of `row` elements.
void RequireCountable(const char* what, int64_t rows, int64_t row);

// "TND": read only, but the vendor's parameter is not const.
char* TndLayout();

DataType AclType(DType dtype);

// The objects that the operators take; they must live until the second step has been called.

struct DestroyTensor {
  void operator()(const aclTensor* tensor) const {
    Forget(GetOperators().aclDestroyTensor(tensor));
  }
};
using Tensor = std::unique_ptr<aclTensor, DestroyTensor>;

struct DestroyIntArray {
  void operator()(const aclIntArray* array) const {
    Forget(GetOperators().aclDestroyIntArray(array));
  }
};
using IntArray = std::unique_ptr<aclIntArray, DestroyIntArray>;

struct DestroyExecutor {
  void operator()(aclOpExecutor* executor) const {
    Forget(GetOperators().aclDestroyAclOpExecutor(executor));
  }
};
using Executor = std::unique_ptr<aclOpExecutor, DestroyExecutor>;

// A dense tensor on the device. Not const, because the outputs are made here, too.
template <size_t kRank>
Tensor MakeTensor(const std::array<int64_t, kRank>& dims, DataType type, const void* data) {
  std::array<int64_t, kRank> strides;
  int64_t stride = 1;
  for (size_t axis = kRank; axis-- > 0; stride *= dims[axis]) strides[axis] = stride;
  Tensor tensor(GetOperators().aclCreateTensor(dims.data(), kRank, type, strides.data(), 0,
                                               kAclFormatNd, dims.data(), kRank,
                                               const_cast<void*>(data)));
  RequireHandle(tensor.get(), "aclCreateTensor");
  return tensor;
}

IntArray MakeIntArray(const int64_t* values, int64_t size);

// Between its two steps an operator asks for a workspace. The second step takes the executor, also
// when it fails; without a second step it is ours to destroy.
template <class First, class Second>
void RunTwoSteps(const char* first_name, First first, const char* second_name, Second second,
                 device::Launch& launch) {
  uint64_t size = 0;
  aclOpExecutor* prepared = nullptr;
  Require(first(&size, &prepared), first_name);
  Executor executor(prepared);
  void* workspace = size > 0 ? launch.Scratch(size) : nullptr;
  Require(second(workspace, size, executor.release(), launch.stream()), second_name);
}

}  // namespace nsa::cann

#endif  // NSA_ONNX_ORT_EXT_DEVICE_CANN_ACLNN_H_
