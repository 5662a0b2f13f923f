// libascendcl.so of the simulated CANN: process, memory and descriptors (streams.cc has the rest),
// and the symbols that only have to resolve.
//
// The symbols are those which torch_npu 2.13.0 and onnxruntime-cann 1.24.4 leave undefined
// (`nm -D --undefined-only`); tests/torch_npu fails when a newer torch_npu needs more.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "descriptors.h"
#include "not_simulated.h"
#include "simulator.h"
#include "state.h"

namespace nsa_sim {
namespace {

std::atomic<bool> initialized{false};
std::atomic<bool> finalized{false};

constexpr int kSystemOptions = 4;  // deterministic, debug kernel, strong consistency, early start
std::atomic<std::int64_t> system_options[kSystemOptions];

template <class T>
T& checked(T* pointer, const char* argument) {
  if (pointer == nullptr) throw Refused{ACL_ERROR_INVALID_PARAM, text("%s is null", argument)};
  return *pointer;
}

void set_dims(aclTensorDesc& desc, int count, const int64_t* dims) {
  if (count < 0 || (count > 0 && dims == nullptr))
    throw Refused{ACL_ERROR_INVALID_PARAM, text("numDims = %d, dims = %p", count, dims)};
  desc.dims.assign(dims, dims + count);
}

void memory_set(void* address, std::size_t room, int value, std::size_t size) {
  if (size > room)
    throw Refused{ACL_ERROR_RT_PARAM_INVALID,
                  text("count = %zu is more than maxCount = %zu", size, room)};
  std::memset(device_bytes(address, size, ACL_ERROR_RT_SYS_DMA, "memset"), value, size);
}

}  // namespace

bool is_initialized() { return initialized; }

}  // namespace nsa_sim

using namespace nsa_sim;

extern "C" {

// Process
// -------------------------------------------------------------------------------------------

aclError aclInit(const char*) {
  return call(__func__, kNothing, [] {
    if (initialized.exchange(true)) throw Refused{ACL_ERROR_REPEAT_INITIALIZE, "called before"};
    finalized = false;
  });
}

aclError aclFinalize() {
  return call(__func__, kNothing | kCarriedOut, [] {
    if (finalized.exchange(true)) throw Refused{ACL_ERROR_REPEAT_FINALIZE, "called before"};
    initialized = false;
  });
}

const char* aclrtGetSocName() {
  return call_for<const char*>(__func__, kInit, nullptr, [] {
    const char* name = std::getenv("NSA_SIM_SOC");
    return name == nullptr ? "Ascend910B2" : name;
  });
}

// 910B: two vector cores to a cube core.
aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo deviceInfo, int64_t* value) {
  return call(__func__, kInit, [&] {
    checked(value, "value") = deviceInfo == ACL_DEVICE_INFO_AI_CORE_NUM ? 24 : 48;
  });
}

aclError aclrtGetRunMode(aclrtRunMode* runMode) {
  return call(__func__, kInit, [&] { checked(runMode, "runMode") = ACL_HOST; });
}

// A log, not a request: nobody waits for an answer.
__attribute__((visibility("default"))) void aclAppLog() {}

// Settings that change nothing here: how arithmetic saturates, when a kernel counts as hung, which
// devices share a queue. torch_npu finds them by name.
#define NSA_SIM_SETTING(symbol)                              \
  __attribute__((visibility("default"))) aclError symbol() { \
    return call(__func__, kInit, [] {});                     \
  }

NSA_SIM_SETTING(aclrtSetDeviceSatMode)
NSA_SIM_SETTING(aclrtSetOpExecuteTimeOut)
NSA_SIM_SETTING(aclrtSetOpWaitTimeout)
NSA_SIM_SETTING(aclrtSetStreamOverflowSwitch)
NSA_SIM_SETTING(aclrtSetStreamFailureMode)
NSA_SIM_SETTING(aclrtSetExceptionInfoCallback)
NSA_SIM_SETTING(aclrtCtxSetSysParamOpt)

NSA_SIM_API aclError aclrtSetSysParamOpt(int option, int64_t value) {
  return call(__func__, kInit, [&] {
    if (option < 0 || option >= kSystemOptions)
      throw Refused{ACL_ERROR_INVALID_PARAM, text("opt = %d", option)};
    system_options[option] = value;
  });
}

NSA_SIM_API aclError aclrtGetSysParamOpt(int option, int64_t* value) {
  return call(__func__, kInit, [&] {
    if (option < 0 || option >= kSystemOptions)
      throw Refused{ACL_ERROR_INVALID_PARAM, text("opt = %d", option)};
    checked(value, "value") = system_options[option];
  });
}

// Memory: freeing needs no context, as in the real runtime.
// -----------------------------------------

aclError aclrtMalloc(void** devPtr, size_t size, aclrtMemMallocPolicy) {
  return call(__func__, kContext | kAllocation,
              [&] { checked(devPtr, "devPtr") = allocate_device(size); });
}

aclError aclrtMallocAlign32(void** devPtr, size_t size, aclrtMemMallocPolicy) {
  return call(__func__, kContext | kAllocation,
              [&] { checked(devPtr, "devPtr") = allocate_device(size); });
}

aclError aclrtFree(void* devPtr) {
  return call(__func__, kInit | kCarriedOut, [&] { free_device(devPtr); });
}

aclError aclrtMallocHost(void** hostPtr, size_t size) {
  return call(__func__, kContext | kAllocation,
              [&] { checked(hostPtr, "hostPtr") = allocate_pinned(size); });
}

aclError aclrtFreeHost(void* hostPtr) {
  return call(__func__, kInit | kCarriedOut, [&] { free_pinned(hostPtr); });
}

aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
  return call(__func__, kContext, [&] {
    checked(total, "total") = device_bytes_total();
    checked(free, "free") = device_bytes_total() - device_bytes_in_use();
  });
}

// At once, on the calling thread: like the real one, it does not wait for any stream.
aclError aclrtMemcpy(void* dst, size_t destMax, const void* src, size_t count,
                     aclrtMemcpyKind kind) {
  return call(__func__, kContext, [&] { copy_now(dst, destMax, src, count, kind); });
}

aclError aclrtMemcpyAsync(void* dst, size_t destMax, const void* src, size_t count,
                          aclrtMemcpyKind kind, aclrtStream stream) {
  return call(__func__, kContext, [&] { copy_later(dst, destMax, src, count, kind, stream); });
}

aclError aclrtMemset(void* devPtr, size_t maxCount, int32_t value, size_t count) {
  return call(__func__, kContext, [&] {
    if (count != 0) memory_set(devPtr, maxCount, value, count);
  });
}

aclError aclrtMemsetAsync(void* devPtr, size_t maxCount, int32_t value, size_t count,
                          aclrtStream stream) {
  return call(__func__, kContext, [&] {
    if (count == 0) return;
    if (!is_device_address(devPtr) || count > maxCount)
      throw Refused{ACL_ERROR_RT_PARAM_INVALID,
                    text("devPtr = %p, count = %zu, maxCount = %zu", devPtr, count, maxCount)};
    submit(stream, "memset", [=] { memory_set(devPtr, maxCount, value, count); });
  });
}

// Descriptors
// ---------------------------------------------------------------------------------------

size_t aclDataTypeSize(aclDataType dataType) {
  switch (dataType) {
    case ACL_BOOL:
    case ACL_INT8:
    case ACL_UINT8:
      return 1;
    case ACL_FLOAT16:
    case ACL_BF16:
    case ACL_INT16:
    case ACL_UINT16:
      return 2;
    case ACL_FLOAT:
    case ACL_INT32:
    case ACL_UINT32:
      return 4;
    case ACL_DOUBLE:
    case ACL_INT64:
    case ACL_UINT64:
    case ACL_COMPLEX64:
      return 8;
    case ACL_COMPLEX128:
      return 16;
    case ACL_DT_UNDEFINED:
      break;
  }
  return 0;
}

aclDataBuffer* aclCreateDataBuffer(void* data, size_t size) {
  return call_for<aclDataBuffer*>(__func__, kNothing, nullptr, [&] {
    auto* buffer = new aclDataBuffer{data, size};
    add_handle(Kind::kDataBuffer, buffer);
    return buffer;
  });
}

aclError aclDestroyDataBuffer(const aclDataBuffer* dataBuffer) {
  return call(__func__, kNothing | kCarriedOut, [&] {
    remove_handle(Kind::kDataBuffer, dataBuffer);
    delete dataBuffer;
  });
}

void* aclGetDataBufferAddr(const aclDataBuffer* dataBuffer) {
  return call_for<void*>(__func__, kNothing, nullptr,
                         [&] { return live(Kind::kDataBuffer, dataBuffer, "dataBuffer").data; });
}

size_t aclGetDataBufferSizeV2(const aclDataBuffer* dataBuffer) {
  return call_for<size_t>(__func__, kNothing, 0,
                          [&] { return live(Kind::kDataBuffer, dataBuffer, "dataBuffer").size; });
}

aclTensorDesc* aclCreateTensorDesc(aclDataType dataType, int numDims, const int64_t* dims,
                                   aclFormat format) {
  return call_for<aclTensorDesc*>(__func__, kNothing, nullptr, [&] {
    aclTensorDesc desc{dataType, format, {}, {}, false, false};
    set_dims(desc, numDims, dims);
    auto* created = new aclTensorDesc(desc);
    add_handle(Kind::kTensorDesc, created);
    return created;
  });
}

void aclDestroyTensorDesc(const aclTensorDesc* desc) {
  call(__func__, kNothing | kCarriedOut, [&] {
    remove_handle(Kind::kTensorDesc, desc);
    delete desc;
  });
}

aclDataType aclGetTensorDescType(const aclTensorDesc* desc) {
  return call_for<aclDataType>(__func__, kNothing, ACL_DT_UNDEFINED,
                               [&] { return live(Kind::kTensorDesc, desc, "desc").type; });
}

aclFormat aclGetTensorDescFormat(const aclTensorDesc* desc) {
  return call_for<aclFormat>(__func__, kNothing, ACL_FORMAT_UNDEFINED,
                             [&] { return live(Kind::kTensorDesc, desc, "desc").format; });
}

size_t aclGetTensorDescSize(const aclTensorDesc* desc) {
  return call_for<size_t>(__func__, kNothing, 0, [&] {
    const aclTensorDesc& described = live(Kind::kTensorDesc, desc, "desc");
    size_t size = aclDataTypeSize(described.type);
    for (const int64_t dim : described.dims) size *= static_cast<size_t>(std::max<int64_t>(dim, 0));
    return size;
  });
}

size_t aclGetTensorDescNumDims(const aclTensorDesc* desc) {
  return call_for<size_t>(__func__, kNothing, 0,
                          [&] { return live(Kind::kTensorDesc, desc, "desc").dims.size(); });
}

aclError aclGetTensorDescDimV2(const aclTensorDesc* desc, size_t index, int64_t* dimSize) {
  return call(__func__, kNothing, [&] {
    const aclTensorDesc& described = live(Kind::kTensorDesc, desc, "desc");
    if (index >= described.dims.size())
      throw Refused{ACL_ERROR_INVALID_PARAM, text("index = %zu", index)};
    checked(dimSize, "dimSize") = described.dims[index];
  });
}

aclError aclSetTensorConst(aclTensorDesc* desc, void* dataBuffer, size_t length) {
  return call(__func__, kNothing, [&] {
    require_live(Kind::kTensorDesc, desc, "desc");
    const auto* bytes = static_cast<const std::byte*>(dataBuffer);
    desc->constant.assign(bytes, bytes + length);
    desc->is_constant = true;
  });
}

void aclSetTensorDescName(aclTensorDesc* desc, const char*) {
  call(__func__, kNothing, [&] { require_live(Kind::kTensorDesc, desc, "desc"); });
}

aclError aclSetTensorFormat(aclTensorDesc* desc, aclFormat) {
  return call(__func__, kNothing, [&] { require_live(Kind::kTensorDesc, desc, "desc"); });
}

aclError aclSetTensorPlaceMent(aclTensorDesc* desc, aclMemType memType) {
  return call(__func__, kNothing, [&] {
    require_live(Kind::kTensorDesc, desc, "desc");
    desc->on_host = memType != ACL_MEMTYPE_DEVICE;
  });
}

aclError aclSetTensorShape(aclTensorDesc* desc, int numDims, const int64_t* dims) {
  return call(__func__, kNothing, [&] {
    require_live(Kind::kTensorDesc, desc, "desc");
    set_dims(*desc, numDims, dims);
  });
}
}

// Models: onnxruntime-cann with enable_cann_graph=1, and dumps of torch_npu.
NOT_SIMULATED(aclmdlAddDatasetBuffer)
NOT_SIMULATED_NULL(aclmdlCreateDataset)
NOT_SIMULATED_NULL(aclmdlCreateDesc)
NOT_SIMULATED(aclmdlDestroyDataset)
NOT_SIMULATED(aclmdlDestroyDesc)
NOT_SIMULATED(aclmdlExecute)
NOT_SIMULATED(aclmdlExecuteAsync)
NOT_SIMULATED(aclmdlFinalizeDump)
NOT_SIMULATED_NULL(aclmdlGetDatasetBuffer)
NOT_SIMULATED_NULL(aclmdlGetDatasetTensorDesc)
NOT_SIMULATED(aclmdlGetDesc)
NOT_SIMULATED_NULL(aclmdlGetInputSizeByIndex)
NOT_SIMULATED_NULL(aclmdlGetNumInputs)
NOT_SIMULATED_NULL(aclmdlGetNumOutputs)
NOT_SIMULATED(aclmdlGetOutputDims)
NOT_SIMULATED_NULL(aclmdlGetOutputSizeByIndex)
NOT_SIMULATED(aclmdlInitDump)
NOT_SIMULATED(aclmdlLoadFromFile)
NOT_SIMULATED(aclmdlLoadFromMem)
NOT_SIMULATED(aclmdlSetDump)
NOT_SIMULATED(aclmdlUnload)

// Several devices
NOT_SIMULATED(aclrtDeviceCanAccessPeer)
NOT_SIMULATED(aclrtDeviceEnablePeerAccess)
NOT_SIMULATED(aclrtDeviceGetBareTgid)

// Memory by pages, memory shared between processes
NOT_SIMULATED(aclrtFreePhysical)
NOT_SIMULATED(aclrtMallocPhysical)
NOT_SIMULATED(aclrtMapMem)
NOT_SIMULATED(aclrtMemExportToShareableHandle)
NOT_SIMULATED(aclrtMemImportFromShareableHandle)
NOT_SIMULATED(aclrtMemSetPidToShareableHandle)
NOT_SIMULATED(aclrtReleaseMemAddress)
NOT_SIMULATED(aclrtReserveMemAddress)
NOT_SIMULATED(aclrtUnmapMem)

// Callbacks of streams
NOT_SIMULATED(aclrtProcessReport)

// Kernels
NOT_SIMULATED(aclrtBinaryGetFunction)
NOT_SIMULATED(aclrtBinaryLoadFromData)
NOT_SIMULATED(aclrtGetFunctionAddr)
NOT_SIMULATED(rtDevBinaryRegister)
NOT_SIMULATED(rtFunctionRegister)
NOT_SIMULATED(rtGetC2cCtrlAddr)
NOT_SIMULATED(rtKernelLaunch)

// Profiling
NOT_SIMULATED_NULL(MsprofGetHashId)
NOT_SIMULATED(MsprofRegisterCallback)
NOT_SIMULATED(MsprofReportAdditionalInfo)
NOT_SIMULATED(MsprofReportApi)
NOT_SIMULATED(MsprofReportCompactInfo)
NOT_SIMULATED_NULL(MsprofSysCycleTime)
