// CANN's libraries (CANN is Huawei's software for Ascend devices), loaded when the first node needs
// them: one library of ours serves machines with CANN and machines without.
#ifndef NSA_ONNX_ORT_EXT_DEVICE_CANN_LIBRARY_H_
#define NSA_ONNX_ORT_EXT_DEVICE_CANN_LIBRARY_H_

#include <string>

#include "device/cann/acl.h"
#include "device/runtime.h"

namespace nsa::cann {

using CannError = device::Error;

#define NSA_DECLARE(name, result, parameters) result(*name) parameters;

// libascendcl.so: device memory, streams, events.
struct Acl {
  NSA_ACL_FUNCTIONS(NSA_DECLARE)
};

// libnnopbase.so: the objects that the vendor's operators take.
struct OperatorBase {
  NSA_NNOPBASE_FUNCTIONS(NSA_DECLARE)
};

#undef NSA_DECLARE

// Loaded once, kept for the life of the process. Throw CannError that says which library or symbol
// is missing; the same again at every call.
const Acl& GetAcl();
const OperatorBase& GetOperatorBase();

// The two functions of one of the vendor's operators, "aclnn...GetWorkspaceSize" and "aclnn...",
// both of one library: the second takes what the first has made. Throws CannError if this CANN does
// not have them.
struct OperatorFunctions {
  void* first;
  void* second;
};
OperatorFunctions FindOperator(const std::string& first_name, const std::string& name);

// Throws CannError with the call's name, the code and CANN's own message unless `status` is 0.
void Require(Status status, const char* call);

// The same for calls that return a handle, which is null if they failed.
void RequireHandle(const void* handle, const char* call);

// For releases whose failure nobody can act on. Takes CANN's message away: the provider's next call
// on this thread would be blamed for it.
void Forget(Status status);

}  // namespace nsa::cann

#endif  // NSA_ONNX_ORT_EXT_DEVICE_CANN_LIBRARY_H_
