// What every node does on an accelerator, whatever its operator: launch work, and say what went
// wrong.
#ifndef NSA_ONNX_ORT_EXT_ORT_DEVICE_NODE_H_
#define NSA_ONNX_ORT_EXT_ORT_DEVICE_NODE_H_

#include <memory>
#include <string>

#include "device/launch.h"
#include "device/memory.h"
#include "ort/common.h"

namespace nsa::ort {

class DeviceNode {
 public:
  // `checks_indices`: what node inputs on the device hold is fetched and checked as well.
  DeviceNode(const OrtKernelInfo* info, const char* op, std::shared_ptr<device::Memory> memory,
             bool checks_indices);

  bool checks_indices() const { return checks_indices_; }

  // The result of `ask`; a device error becomes the node's.
  template <class Ask>
  auto Require(Ask ask) const {
    try {
      return ask();
    } catch (const device::Error& error) {
      Fail(error, "");
    }
  }

  // Calls body(launch), which launches. If it fails, some of the work may be on the stream already:
  // that is waited for, and `consequence` says what it may have done.
  template <class Body, class Consequence>
  void Run(OrtKernelContext* context, Body body, Consequence consequence) const {
    const Ort::KernelContext kernel_context(context);
    const int device = kernel_context.GetInput(0).GetTensorMemoryInfo().GetDeviceId();
    device::Launch launch(*memory_, device, kernel_context.GetGPUComputeStream());
    try {
      body(launch);
      launch.MarkBlocks();
    } catch (const device::Error& error) {
      const std::string consequences = consequence();
      launch.runtime().Synchronize(launch.stream());
      Fail(error, consequences);
    } catch (...) {
      launch.runtime().Synchronize(launch.stream());
      throw;
    }
  }

 private:
  [[noreturn]] void Fail(const device::Error& error, const std::string& consequence) const;

  std::string description_;  // the operator and the node's name
  std::shared_ptr<device::Memory> memory_;
  bool checks_indices_;
};

}  // namespace nsa::ort

#endif  // NSA_ONNX_ORT_EXT_ORT_DEVICE_NODE_H_
