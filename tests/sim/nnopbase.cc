// libnnopbase.so of the simulated CANN: the objects that aclnn operators take, and their executor.
#include "nnopbase.h"

#include <cstring>
#include <memory>

namespace nsa_sim {

std::int64_t element_count(const aclTensor& tensor) {
  std::int64_t count = 1;
  for (const std::int64_t dim : tensor.dims) count *= dim;
  return count;
}

namespace {

void launch(const char* function, void* workspace, std::uint64_t workspace_size,
            const std::shared_ptr<aclOpExecutor>& executor, aclrtStream stream) {
  if (std::strcmp(executor->function, function) != 0)
    throw Refused{ACLNN_ERR_INNER, text("the executor belongs to %s", executor->function)};
  for (const aclTensor* tensor : executor->tensors)
    if (!is_live(Kind::kTensor, tensor))
      throw Refused{ACLNN_ERR_INNER, text("aclTensor %p was destroyed between the two steps",
                                          static_cast<const void*>(tensor))};
  if (executor->workspace_size > 0 && workspace == nullptr)
    throw Refused{ACLNN_ERR_PARAM_NULLPTR, "workspace is null"};
  if (workspace_size < executor->workspace_size)
    throw Refused{ACLNN_ERR_PARAM_INVALID,
                  text("workspaceSize = %llu, needed are %llu",
                       static_cast<unsigned long long>(workspace_size),
                       static_cast<unsigned long long>(executor->workspace_size))};
  submit(stream, function, [executor, workspace] {
    executor->kernel(device_bytes(workspace, executor->workspace_size,
                                  ACL_ERROR_RT_VECTOR_CORE_EXCEPTION, "workspace"));
  });
}

}  // namespace

aclnnStatus execute(const char* function, void* workspace, std::uint64_t workspace_size,
                    aclOpExecutor* executor, aclrtStream stream) {
  std::shared_ptr<aclOpExecutor> owned;
  if (is_live(Kind::kExecutor, executor)) {
    remove_handle(Kind::kExecutor, executor);
    owned.reset(executor);
  }
  return call(function, kContext, [&] {
    if (executor == nullptr) throw Refused{ACLNN_ERR_PARAM_NULLPTR, "executor is null"};
    if (owned == nullptr) throw Refused{ACLNN_ERR_INNER, "executor is not live (executed twice?)"};
    launch(function, workspace, workspace_size, owned, stream);
  });
}

namespace {

bool is_contiguous(const std::vector<std::int64_t>& dims, const std::int64_t* strides) {
  if (strides == nullptr) return true;
  std::int64_t expected = 1;
  for (std::size_t i = dims.size(); i-- > 0;) {
    if (dims[i] != 1 && strides[i] != expected) return false;
    expected *= dims[i];
  }
  return true;
}

template <class T>
aclnnStatus destroy(const char* name, Kind kind, const T* object) {
  return call(name, kNothing | kCarriedOut, [&] {
    if (object == nullptr) return;  // as the vendor's
    remove_handle(kind, object);
    delete object;
  });
}

}  // namespace
}  // namespace nsa_sim

using namespace nsa_sim;

extern "C" {

aclnnStatus aclnnInit(const char*) {
  return call(__func__, kInit, [] {});
}

aclnnStatus aclnnFinalize() {
  return call(__func__, kNothing | kCarriedOut, [] {});
}

aclTensor* aclCreateTensor(const int64_t* viewDims, uint64_t viewDimsNum, aclDataType dataType,
                           const int64_t* stride, int64_t offset, aclFormat,
                           const int64_t* storageDims, uint64_t storageDimsNum, void* tensorData) {
  return call_for<aclTensor*>(__func__, kNothing, nullptr, [&] {
    if ((viewDims == nullptr && viewDimsNum > 0) || (storageDims == nullptr && storageDimsNum > 0))
      throw Refused{ACLNN_ERR_PARAM_NULLPTR, "dims are null"};
    std::vector<std::int64_t> dims(viewDims, viewDims + viewDimsNum);
    const bool contiguous = is_contiguous(dims, stride);
    // offset counts elements; a null tensor stays null.
    auto* data = static_cast<std::byte*>(tensorData);
    if (data != nullptr) data += offset * static_cast<std::int64_t>(aclDataTypeSize(dataType));
    auto* tensor = new aclTensor{std::move(dims), dataType, contiguous, data};
    add_handle(Kind::kTensor, tensor);
    return tensor;
  });
}

aclnnStatus aclDestroyTensor(const aclTensor* tensor) {
  return destroy(__func__, Kind::kTensor, tensor);
}

aclIntArray* aclCreateIntArray(const int64_t* value, uint64_t size) {
  return call_for<aclIntArray*>(__func__, kNothing, nullptr, [&] {
    auto* array = new aclIntArray{std::vector<std::int64_t>(value, value + size)};
    add_handle(Kind::kIntArray, array);
    return array;
  });
}

aclnnStatus aclDestroyIntArray(const aclIntArray* array) {
  return destroy(__func__, Kind::kIntArray, array);
}

aclnnStatus aclGetIntArraySize(const aclIntArray* array, uint64_t* size) {
  return call(__func__, kNothing, [&] {
    if (array == nullptr || size == nullptr)
      throw Refused{ACLNN_ERR_PARAM_NULLPTR, "array or size is null"};
    *size = live(Kind::kIntArray, array, "array").values.size();
  });
}

aclnnStatus aclSetAclOpExecutorRepeatable(aclOpExecutor*) {
  return call(__func__, kNothing, [] {
    throw Refused{ACL_ERROR_API_NOT_SUPPORT, "repeatable executors are not simulated"};
  });
}

aclnnStatus aclDestroyAclOpExecutor(aclOpExecutor* executor) {
  return destroy(__func__, Kind::kExecutor, executor);
}
}
