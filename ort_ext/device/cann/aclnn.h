// The aclnn backend: CANN's own operators, which are called in two steps, within their limits. Here
// is what every operator's call needs; the calls themselves are in operators/*/aclnn.cc.
#ifndef NSA_ONNX_ORT_EXT_DEVICE_CANN_ACLNN_H_
#define NSA_ONNX_ORT_EXT_DEVICE_CANN_ACLNN_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "device/cann/library.h"
#include "device/launch.h"
#include "plan/dtype.h"

namespace nsa::cann {

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
    Forget(GetOperatorBase().aclDestroyTensor(tensor));
  }
};
using Tensor = std::unique_ptr<aclTensor, DestroyTensor>;

struct DestroyIntArray {
  void operator()(const aclIntArray* array) const {
    Forget(GetOperatorBase().aclDestroyIntArray(array));
  }
};
using IntArray = std::unique_ptr<aclIntArray, DestroyIntArray>;

struct DestroyExecutor {
  void operator()(aclOpExecutor* executor) const {
    Forget(GetOperatorBase().aclDestroyAclOpExecutor(executor));
  }
};
using Executor = std::unique_ptr<aclOpExecutor, DestroyExecutor>;

// A dense tensor on the device. Not const, because the outputs are made here, too.
template <size_t kRank>
Tensor MakeTensor(const std::array<int64_t, kRank>& dims, DataType type, const void* data) {
  std::array<int64_t, kRank> strides;
  int64_t stride = 1;
  for (size_t axis = kRank; axis-- > 0; stride *= dims[axis]) strides[axis] = stride;
  Tensor tensor(GetOperatorBase().aclCreateTensor(dims.data(), kRank, type, strides.data(), 0,
                                                  kAclFormatNd, dims.data(), kRank,
                                                  const_cast<void*>(data)));
  RequireHandle(tensor.get(), "aclCreateTensor");
  return tensor;
}

IntArray MakeIntArray(const int64_t* values, int64_t size);
inline IntArray MakeIntArray(const std::vector<int64_t>& values) {
  return MakeIntArray(values.data(), static_cast<int64_t>(values.size()));
}

// One of the vendor's operators. Made once and never destroyed: a thread of the host may still run
// a node while the process ends. Parameters: what its first step takes, all but the last two.
template <class... Parameters>
class VendorOperator {
 public:
  // What the first step has made. The second step takes it, also when it fails; without a second
  // step it is ours to destroy.
  struct Prepared {
    uint64_t size;
    void* workspace;
    Executor executor;
  };

  // Throws CannError if this machine does not have the operator, "aclnn...".
  explicit VendorOperator(const std::string& name)
      : name_(name), first_name_(name + "GetWorkspaceSize") {
    GetAcl();  // first: without CANN, that is what is missing
    GetOperatorBase();
    const OperatorFunctions found = FindOperator(first_name_, name_);
    first_ = reinterpret_cast<First>(found.first);
    second_ = reinterpret_cast<Second>(found.second);
  }

  Prepared Prepare(device::Launch& launch, Parameters... parameters) const {
    uint64_t size = 0;
    aclOpExecutor* prepared = nullptr;
    Require(first_(parameters..., &size, &prepared), first_name_.c_str());
    Executor executor(prepared);
    void* workspace = size > 0 ? launch.Scratch(size) : nullptr;
    return {size, workspace, std::move(executor)};
  }

  void Start(device::Launch& launch, Prepared prepared) const {
    Require(
        second_(prepared.workspace, prepared.size, prepared.executor.release(), launch.stream()),
        name_.c_str());
  }

 private:
  using First = Status (*)(Parameters..., uint64_t* workspace, aclOpExecutor** executor);
  using Second = Status (*)(void* workspace, uint64_t size, aclOpExecutor* executor, Stream stream);

  std::string name_;
  std::string first_name_;
  First first_;
  Second second_;
};

}  // namespace nsa::cann

#endif  // NSA_ONNX_ORT_EXT_DEVICE_CANN_ACLNN_H_
