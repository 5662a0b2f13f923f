// Indices that a node reads and another node has left on the device.
#ifndef NSA_ONNX_ORT_EXT_ORT_DEVICE_INDICES_H_
#define NSA_ONNX_ORT_EXT_ORT_DEVICE_INDICES_H_

#include <cstdint>

#include "device/launch.h"
#include "ort/common.h"
#include "ort/device_node.h"

namespace nsa::ort {

struct DeviceIndices {
  const int32_t* on_host;    // to be checked; null where the session takes them as they are
  const int32_t* on_device;  // the same ones
  int64_t count;
};

// Waits for what makes them, and fetches them, if they are to be checked. What is used then is a
// copy of what was fetched, so that nothing changes it after the check.
inline DeviceIndices FetchIndices(const Tensor& indices, const DeviceNode& node,
                                  device::Launch& launch) {
  int64_t count = 1;
  for (const int64_t dim : indices.dims) count *= dim;
  const auto* given = indices.as<int32_t>();
  if (count == 0 || !node.checks_indices()) {
    return {node.checks_indices() ? given : nullptr, given, count};
  }
  const size_t bytes = static_cast<size_t>(count) * sizeof(int32_t);
  const void* host = launch.Fetch(given, bytes);
  void* copy = launch.Scratch(bytes);
  launch.runtime().CopyToDevice(copy, host, bytes, launch.stream());
  return {static_cast<const int32_t*>(host), static_cast<const int32_t*>(copy), count};
}

}  // namespace nsa::ort

#endif  // NSA_ONNX_ORT_EXT_ORT_DEVICE_INDICES_H_
