// See device_node.h.
#include "ort/device_node.h"

#include <utility>

namespace nsa::ort {
namespace {

std::string Describe(const OrtKernelInfo* info, const char* op) {
  size_t size = 0;
  Ort::ThrowOnError(Ort::GetApi().KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, '\0');
  Ort::ThrowOnError(Ort::GetApi().KernelInfo_GetNodeName(info, name.data(), &size));
  while (!name.empty() && name.back() == '\0') name.pop_back();
  return std::string(op) + " '" + name + "'";
}

}  // namespace

DeviceNode::DeviceNode(const OrtKernelInfo* info, const char* op,
                       std::shared_ptr<device::Memory> memory, bool checks_indices)
    : description_(Describe(info, op)),
      memory_(std::move(memory)),
      checks_indices_(checks_indices) {}

void DeviceNode::Fail(const device::Error& error, const std::string& consequence) const {
  throw Ort::Exception(description_ + ": " + error.what() + consequence, ORT_EP_FAIL);
}

}  // namespace nsa::ort
