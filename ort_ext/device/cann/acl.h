// The part of CANN's public C interface that this library calls whatever the operator: names,
// values and signatures as in the vendor's headers, so that building needs no CANN. The functions
// of the vendor's operators are declared where they are called, in operators/*/aclnn.cc.
#ifndef NSA_ONNX_ORT_EXT_DEVICE_CANN_ACL_H_
#define NSA_ONNX_ORT_EXT_DEVICE_CANN_ACL_H_

#include <cstddef>
#include <cstdint>

#include "device/runtime.h"

namespace nsa::cann {

// aclError and aclnnStatus; 0 is success.
using Status = int32_t;
using device::Stream;
using Event = void*;

struct aclTensor;
struct aclIntArray;
struct aclOpExecutor;

enum DataType : int32_t {
  kAclFloat = 0,
  kAclFloat16 = 1,
  kAclInt32 = 3,
  kAclBool = 12,
  kAclBFloat16 = 27
};
enum Format : int32_t { kAclFormatNd = 2 };
enum CopyKind : int32_t { kAclHostToDevice = 1, kAclDeviceToHost = 2, kAclDeviceToDevice = 3 };
enum MallocPolicy : int32_t { kAclHugeFirst = 0 };
enum DeviceInfo : int32_t { kAclVectorCoreNum = 1 };
enum EventStatus : int32_t { kAclEventNotReady = 0, kAclEventComplete = 1 };

// X(name, result, parameters): functions of libascendcl.so.
#define NSA_ACL_FUNCTIONS(X)                                                              \
  X(aclGetRecentErrMsg, const char*, ())                                                  \
  X(aclrtGetSocName, const char*, ())                                                     \
  X(aclGetDeviceCapability, Status, (uint32_t device, DeviceInfo info, int64_t* value))   \
  X(aclrtMalloc, Status, (void** device, size_t size, MallocPolicy policy))               \
  X(aclrtFree, Status, (void* device))                                                    \
  X(aclrtMallocHost, Status, (void** host, size_t size))                                  \
  X(aclrtFreeHost, Status, (void* host))                                                  \
  X(aclrtMemcpyAsync, Status,                                                             \
    (void* dst, size_t room, const void* src, size_t size, CopyKind kind, Stream stream)) \
  X(aclrtCreateEvent, Status, (Event * event))                                            \
  X(aclrtDestroyEvent, Status, (Event event))                                             \
  X(aclrtRecordEvent, Status, (Event event, Stream stream))                               \
  X(aclrtQueryEventStatus, Status, (Event event, EventStatus * status))                   \
  X(aclrtSynchronizeEvent, Status, (Event event))                                         \
  X(aclrtSynchronizeStream, Status, (Stream stream))

// Functions of libnnopbase.so.
#define NSA_NNOPBASE_FUNCTIONS(X)                                                               \
  X(aclCreateTensor, aclTensor*,                                                                \
    (const int64_t* dims, uint64_t rank, DataType type, const int64_t* strides, int64_t offset, \
     Format format, const int64_t* storage_dims, uint64_t storage_rank, void* data))            \
  X(aclDestroyTensor, Status, (const aclTensor* tensor))                                        \
  X(aclCreateIntArray, aclIntArray*, (const int64_t* values, uint64_t size))                    \
  X(aclDestroyIntArray, Status, (const aclIntArray* array))                                     \
  X(aclDestroyAclOpExecutor, Status, (aclOpExecutor * executor))

}  // namespace nsa::cann

#endif  // NSA_ONNX_ORT_EXT_DEVICE_CANN_ACL_H_
