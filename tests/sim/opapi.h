// What every operator of libopapi.so needs: its arguments read and refused, its memory, its first
// step's end.
#ifndef NSA_ONNX_TESTS_SIM_OPAPI_H_
#define NSA_ONNX_TESTS_SIM_OPAPI_H_

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "half.h"
#include "nnopbase.h"

namespace nsa_sim {

constexpr int kFault = ACL_ERROR_RT_VECTOR_CORE_EXCEPTION;
constexpr std::int64_t kElement = 2;            // bytes of float16 and bfloat16
constexpr std::uint64_t kSystemWorkspace = 64;  // the vendor's operators always ask for some

[[noreturn]] inline void invalid(std::string message) {
  throw Refused{ACLNN_ERR_PARAM_INVALID, std::move(message)};
}

[[noreturn]] inline void tiling(std::string message) {
  throw Refused{ACLNN_ERR_INNER_TILING_ERROR, std::move(message)};
}

inline const aclTensor& tensor(const aclTensor* argument, const char* name) {
  if (argument == nullptr) throw Refused{ACLNN_ERR_PARAM_NULLPTR, text("%s is null", name)};
  require_live(Kind::kTensor, argument, name);
  if (!argument->contiguous)
    throw Refused{ACL_ERROR_API_NOT_SUPPORT, text("%s is not contiguous: not simulated", name)};
  return *argument;
}

inline void require_rank(const aclTensor& argument, const char* name, std::size_t rank) {
  if (argument.dims.size() != rank)
    invalid(text("%s has rank %zu, needed is %zu", name, argument.dims.size(), rank));
}

inline void require_type(const aclTensor& argument, const char* name, aclDataType type) {
  if (argument.type != type)
    invalid(text("%s has type %d, needed is %d", name, argument.type, type));
}

inline void require_half(const aclTensor& argument, const char* name) {
  if (argument.type != ACL_FLOAT16 && argument.type != ACL_BF16)
    invalid(text("%s has type %d, supported are float16 and bfloat16", name, argument.type));
}

inline std::string upper(const char* layout) {
  std::string result = layout == nullptr ? "" : layout;
  for (char& c : result)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return result;
}

inline const std::vector<std::int64_t>& lengths_of(const aclIntArray* argument) {
  if (argument == nullptr || live(Kind::kIntArray, argument, "actSeqLenOptional").values.empty())
    invalid("actSeqLenOptional is null or empty");
  return argument->values;
}

inline float to_float(std::uint16_t bits, aclDataType type) {
  return type == ACL_FLOAT16 ? from_float16(bits) : from_bfloat16(bits);
}

inline std::uint16_t from_float(float value, aclDataType type, Rounding rounding) {
  return type == ACL_FLOAT16 ? to_float16(value, rounding) : to_bfloat16(value, rounding);
}

inline const std::uint16_t* halves(const aclTensor& argument, const char* name) {
  return reinterpret_cast<const std::uint16_t*>(device_bytes(
      argument.data, static_cast<std::size_t>(element_count(argument) * kElement), kFault, name));
}

inline std::uint16_t* mutable_halves(const aclTensor& argument, const char* name) {
  return const_cast<std::uint16_t*>(halves(argument, name));
}

inline const std::int32_t* indices(const aclTensor& argument, const char* name) {
  return reinterpret_cast<const std::int32_t*>(device_bytes(
      argument.data, static_cast<std::size_t>(element_count(argument) * 4), kFault, name));
}

// What a first step plans: a kernel that runs on the stream once its workspace has been written to.
inline aclOpExecutor* plan(const char* function, std::vector<const aclTensor*> tensors,
                           std::function<void()> kernel) {
  return new aclOpExecutor{function, std::move(tensors), kSystemWorkspace,
                           [kernel = std::move(kernel)](std::byte* workspace) {
                             std::memset(workspace, 0xA5, kSystemWorkspace);
                             kernel();
                           }};
}

// What all first steps end with.
inline void hand_out(aclOpExecutor* planned, std::uint64_t* workspace_size,
                     aclOpExecutor** executor) {
  add_handle(Kind::kExecutor, planned);
  *workspace_size = planned->workspace_size;
  *executor = planned;
}

inline void require_results(const std::uint64_t* workspace_size, aclOpExecutor* const* executor) {
  if (workspace_size == nullptr || executor == nullptr)
    throw Refused{ACLNN_ERR_PARAM_NULLPTR, "workspaceSize or executor is null"};
}

}  // namespace nsa_sim

#endif  // NSA_ONNX_TESTS_SIM_OPAPI_H_
