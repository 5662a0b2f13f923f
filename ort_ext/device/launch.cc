// See launch.h.
#include "device/launch.h"

#include <cstring>
#include <utility>

namespace nsa::device {

Launch::~Launch() {
  for (auto& block : blocks_) memory_.Return(std::move(block));
}

void* Launch::Upload(const void* data, size_t bytes) {
  void* staging = Borrow(Place::kPinned, bytes);
  std::memcpy(staging, data, bytes);
  void* device = Scratch(bytes);
  runtime().CopyToDevice(device, staging, bytes, stream_);
  return device;
}

const void* Launch::Fetch(const void* data, size_t bytes) {
  void* host = Borrow(Place::kPinned, bytes);
  runtime().Fetch(host, data, bytes, stream_);
  return host;
}

void Launch::MarkBlocks() {
  if (blocks_.empty()) return;
  const std::shared_ptr<const Mark> mark = runtime().MarkStream(stream_);
  for (auto& block : blocks_) block->mark = mark;
}

void* Launch::Borrow(Place place, size_t bytes) {
  blocks_.reserve(blocks_.size() + 1);
  blocks_.push_back(memory_.Borrow(place, device_, bytes, stream_));
  blocks_.back()->stream = stream_;
  blocks_.back()->mark = nullptr;
  return blocks_.back()->address;
}

}  // namespace nsa::device
