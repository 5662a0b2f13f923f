// See memory.h.
#include "cann/memory.h"

#include <algorithm>
#include <utility>

namespace nsa::cann {
namespace {

// Sizes are powers of two, so that growing ones do not leave a block behind for every size.
size_t RoundUp(size_t size) {
  size_t rounded = 4096;
  while (rounded < size) rounded *= 2;
  return rounded;
}

void* Allocate(Place place, size_t size) {
  const Runtime& runtime = GetRuntime();
  void* address = nullptr;
  if (place == Place::kDevice) {
    Require(runtime.aclrtMalloc(&address, size, kAclHugeFirst), "aclrtMalloc");
  } else {
    Require(runtime.aclrtMallocHost(&address, size), "aclrtMallocHost");
  }
  return address;
}

}  // namespace

Mark::Mark(Stream stream) {
  const Runtime& runtime = GetRuntime();
  Require(runtime.aclrtCreateEvent(&event_), "aclrtCreateEvent");
  const Status status = runtime.aclrtRecordEvent(event_, stream);
  if (status == 0) return;
  try {
    Require(status, "aclrtRecordEvent");
  } catch (...) {
    Forget(runtime.aclrtDestroyEvent(event_));
    throw;
  }
}

Mark::~Mark() { Forget(GetRuntime().aclrtDestroyEvent(event_)); }

bool Mark::Passed() const {
  EventStatus status = kAclEventNotReady;
  Require(GetRuntime().aclrtQueryEventStatus(event_, &status), "aclrtQueryEventStatus");
  return status == kAclEventComplete;
}

void Mark::Wait() const noexcept { Forget(GetRuntime().aclrtSynchronizeEvent(event_)); }

Memory::Block::~Block() {
  if (mark) mark->Wait();
  const Runtime& runtime = GetRuntime();
  Forget(place == Place::kDevice ? runtime.aclrtFree(address) : runtime.aclrtFreeHost(address));
}

std::shared_ptr<Memory> Memory::Shared() {
  static std::mutex mutex;
  static auto* shared = new std::weak_ptr<Memory>;  // sessions may outlive static objects
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Memory> memory = shared->lock();
  if (memory == nullptr) *shared = memory = std::make_shared<Memory>();
  return memory;
}

std::unique_ptr<Memory::Block> Memory::Borrow(Place place, int device, size_t size, Stream stream) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      const Block& found = **block;
      if (found.place != place || found.device != device || found.size < size) continue;
      // The host writes pinned memory at once, so there the stream's own order is not enough.
      const bool ordered = place == Place::kDevice && found.stream == stream;
      if (!ordered && found.mark != nullptr && !found.mark->Passed()) continue;
      std::unique_ptr<Block> taken = std::move(*block);
      blocks_.erase(block);
      return taken;
    }
  }
  const size_t rounded = RoundUp(size);
  return std::unique_ptr<Block>(
      new Block{place, device, rounded, Allocate(place, rounded), stream, nullptr});
}

void Memory::Return(std::unique_ptr<Block> block) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto larger = std::find_if(blocks_.begin(), blocks_.end(),
                                   [&](const auto& other) { return other->size >= block->size; });
  blocks_.insert(larger, std::move(block));
}

}  // namespace nsa::cann
