// The accelerator that is driven through CANN, as device/runtime.h wants it, and the memory that
// its nodes share.
#ifndef NSA_ONNX_ORT_EXT_DEVICE_CANN_RUNTIME_H_
#define NSA_ONNX_ORT_EXT_DEVICE_CANN_RUNTIME_H_

#include <memory>

#include "device/memory.h"
#include "device/runtime.h"

namespace nsa::cann {

// Of all nodes that hold it.
std::shared_ptr<device::Memory> SharedMemory();

}  // namespace nsa::cann

#endif  // NSA_ONNX_ORT_EXT_DEVICE_CANN_RUNTIME_H_
