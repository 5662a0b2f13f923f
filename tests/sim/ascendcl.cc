// libascendcl.so of the simulated CANN: runtime, memory, streams, profiling hooks.
//
// The symbols are those which torch_npu 2.13.0 leaves undefined (`nm -D --undefined-only` on
// libtorch_npu.so, libtensorpipe.so and _C.so); tests/torch_npu fails when a newer one needs more.
#include "not_simulated.h"

// A log, not a request: nobody waits for an answer.
extern "C" __attribute__((visibility("default"))) void aclAppLog() {}

NOT_SIMULATED(aclInit)
NOT_SIMULATED(aclFinalize)
NOT_SIMULATED_NULL(aclGetRecentErrMsg)
NOT_SIMULATED(aclGetDeviceCapability)

// Tensor descriptors and buffers
NOT_SIMULATED_NULL(aclCreateDataBuffer)
NOT_SIMULATED(aclDestroyDataBuffer)
NOT_SIMULATED_NULL(aclCreateTensorDesc)
NOT_SIMULATED(aclDestroyTensorDesc)
NOT_SIMULATED(aclGetTensorDescDimV2)
NOT_SIMULATED_NULL(aclGetTensorDescFormat)
NOT_SIMULATED_NULL(aclGetTensorDescNumDims)
NOT_SIMULATED_NULL(aclGetTensorDescType)
NOT_SIMULATED(aclSetTensorDescName)
NOT_SIMULATED(aclSetTensorFormat)
NOT_SIMULATED(aclSetTensorPlaceMent)
NOT_SIMULATED(aclSetTensorShape)

// Dumps of models
NOT_SIMULATED(aclmdlFinalizeDump)
NOT_SIMULATED(aclmdlInitDump)
NOT_SIMULATED(aclmdlSetDump)

// Devices and contexts
NOT_SIMULATED(aclrtDeviceCanAccessPeer)
NOT_SIMULATED(aclrtDeviceEnablePeerAccess)
NOT_SIMULATED(aclrtDeviceGetBareTgid)
NOT_SIMULATED(aclrtGetCurrentContext)
NOT_SIMULATED(aclrtGetDevice)
NOT_SIMULATED(aclrtGetDeviceCount)
NOT_SIMULATED_NULL(aclrtGetSocName)
NOT_SIMULATED(aclrtResetDevice)
NOT_SIMULATED(aclrtSetCurrentContext)
NOT_SIMULATED(aclrtSetDevice)

// Memory
NOT_SIMULATED(aclrtFree)
NOT_SIMULATED(aclrtFreeHost)
NOT_SIMULATED(aclrtFreePhysical)
NOT_SIMULATED(aclrtGetMemInfo)
NOT_SIMULATED(aclrtMalloc)
NOT_SIMULATED(aclrtMallocHost)
NOT_SIMULATED(aclrtMallocPhysical)
NOT_SIMULATED(aclrtMapMem)
NOT_SIMULATED(aclrtMemExportToShareableHandle)
NOT_SIMULATED(aclrtMemImportFromShareableHandle)
NOT_SIMULATED(aclrtMemSetPidToShareableHandle)
NOT_SIMULATED(aclrtMemcpy)
NOT_SIMULATED(aclrtMemcpyAsync)
NOT_SIMULATED(aclrtMemset)
NOT_SIMULATED(aclrtReleaseMemAddress)
NOT_SIMULATED(aclrtReserveMemAddress)
NOT_SIMULATED(aclrtUnmapMem)

// Streams and events
NOT_SIMULATED(aclrtCreateEventExWithFlag)
NOT_SIMULATED(aclrtCreateStream)
NOT_SIMULATED(aclrtCreateStreamWithConfig)
NOT_SIMULATED(aclrtDestroyEvent)
NOT_SIMULATED(aclrtDestroyStream)
NOT_SIMULATED(aclrtEventElapsedTime)
NOT_SIMULATED(aclrtProcessReport)
NOT_SIMULATED(aclrtRecordEvent)
NOT_SIMULATED(aclrtResetEvent)
NOT_SIMULATED(aclrtStreamWaitEvent)
NOT_SIMULATED(aclrtSynchronizeEvent)
NOT_SIMULATED(aclrtSynchronizeStream)

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
