// See staging.h.
#include "cann/staging.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace nsa::cann {
namespace {

constexpr size_t kSmallest = 4096;  // most decode steps fit; the driver pins whole pages anyway

}  // namespace

struct Staging::Buffer {
  const Runtime& runtime = GetRuntime();
  void* memory = nullptr;
  size_t size = 0;
  Event passed = nullptr;  // recorded behind the copy
  bool recorded = false;

  explicit Buffer(size_t wanted) {
    Require(runtime.aclrtCreateEvent(&passed), "aclrtCreateEvent");
    size = std::max(kSmallest, wanted);
    const Status status = runtime.aclrtMallocHost(&memory, size);
    if (status == 0) return;
    memory = nullptr;
    try {
      Require(status, "aclrtMallocHost");
    } catch (...) {
      Forget(runtime.aclrtDestroyEvent(passed));
      throw;
    }
  }

  ~Buffer() {
    if (recorded) Forget(runtime.aclrtSynchronizeEvent(passed));
    Forget(runtime.aclrtDestroyEvent(passed));
    Forget(runtime.aclrtFreeHost(memory));
  }

  bool Idle() {
    if (!recorded) return true;
    EventStatus status = kAclEventNotReady;
    Require(runtime.aclrtQueryEventStatus(passed, &status), "aclrtQueryEventStatus");
    return status == kAclEventComplete;
  }
};

Staging::Staging() = default;
Staging::~Staging() = default;

std::unique_ptr<Staging::Buffer> Staging::Take(size_t size) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto buffer = buffers_.begin(); buffer != buffers_.end(); ++buffer) {
      if ((*buffer)->size < size || !(*buffer)->Idle()) continue;
      std::unique_ptr<Buffer> taken = std::move(*buffer);
      buffers_.erase(buffer);
      return taken;
    }
  }
  return std::make_unique<Buffer>(size);
}

void Staging::Put(std::unique_ptr<Buffer> buffer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  buffers_.push_back(std::move(buffer));
}

void Staging::Upload(void* device, const void* data, size_t size, Stream stream) {
  // Nobody else can see the buffer until its event is recorded: an older recording, already passed,
  // would say that it is free.
  std::unique_ptr<Buffer> buffer = Take(size);
  const Runtime& runtime = buffer->runtime;
  std::memcpy(buffer->memory, data, size);
  buffer->recorded = false;
  Require(runtime.aclrtMemcpyAsync(device, size, buffer->memory, size, kAclHostToDevice, stream),
          "aclrtMemcpyAsync");
  const Status status = runtime.aclrtRecordEvent(buffer->passed, stream);
  buffer->recorded = status == 0;
  // Without the event, only the stream itself says when the copy is over.
  if (status != 0) Forget(runtime.aclrtSynchronizeStream(stream));
  Put(std::move(buffer));
  Require(status, "aclrtRecordEvent");
}

}  // namespace nsa::cann
