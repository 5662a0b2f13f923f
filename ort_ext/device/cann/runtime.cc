// See runtime.h.
#include "device/cann/runtime.h"

#include <mutex>

#include "device/cann/library.h"

namespace nsa::cann {
namespace {

using device::Place;

class EventMark : public device::Mark {
 public:
  explicit EventMark(Stream stream) {
    const Acl& acl = GetAcl();
    Require(acl.aclrtCreateEvent(&event_), "aclrtCreateEvent");
    const Status status = acl.aclrtRecordEvent(event_, stream);
    if (status == 0) return;
    try {
      Require(status, "aclrtRecordEvent");
    } catch (...) {
      Forget(acl.aclrtDestroyEvent(event_));
      throw;
    }
  }
  EventMark(const EventMark&) = delete;
  EventMark& operator=(const EventMark&) = delete;
  ~EventMark() override { Forget(GetAcl().aclrtDestroyEvent(event_)); }

  bool Passed() const override {
    EventStatus status = kAclEventNotReady;
    Require(GetAcl().aclrtQueryEventStatus(event_, &status), "aclrtQueryEventStatus");
    return status == kAclEventComplete;
  }
  void Wait() const noexcept override { Forget(GetAcl().aclrtSynchronizeEvent(event_)); }

 private:
  Event event_ = nullptr;
};

class CannRuntime : public device::Runtime {
 public:
  void* Allocate(Place place, size_t size) const override {
    void* address = nullptr;
    if (place == Place::kDevice) {
      Require(GetAcl().aclrtMalloc(&address, size, kAclHugeFirst), "aclrtMalloc");
    } else {
      Require(GetAcl().aclrtMallocHost(&address, size), "aclrtMallocHost");
    }
    return address;
  }
  void Free(Place place, void* address) const noexcept override {
    const Acl& acl = GetAcl();
    Forget(place == Place::kDevice ? acl.aclrtFree(address) : acl.aclrtFreeHost(address));
  }
  std::shared_ptr<const device::Mark> MarkStream(Stream stream) const override {
    return std::make_shared<const EventMark>(stream);
  }
  void CopyToDevice(void* to, const void* from, size_t size, Stream stream) const override {
    Copy(to, from, size, kAclHostToDevice, stream);
  }
  void CopyOnDevice(void* to, const void* from, size_t size, Stream stream) const override {
    Copy(to, from, size, kAclDeviceToDevice, stream);
  }
  void Fetch(void* to, const void* from, size_t size, Stream stream) const override {
    Copy(to, from, size, kAclDeviceToHost, stream);
    Require(GetAcl().aclrtSynchronizeStream(stream), "aclrtSynchronizeStream");
  }
  void Synchronize(Stream stream) const noexcept override {
    Forget(GetAcl().aclrtSynchronizeStream(stream));
  }

 private:
  static void Copy(void* to, const void* from, size_t size, CopyKind kind, Stream stream) {
    Require(GetAcl().aclrtMemcpyAsync(to, size, from, size, kind, stream), "aclrtMemcpyAsync");
  }
};

}  // namespace

std::shared_ptr<device::Memory> SharedMemory() {
  static const CannRuntime* runtime = new CannRuntime;  // sessions may outlive static objects
  static auto* shared = new std::weak_ptr<device::Memory>;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<device::Memory> memory = shared->lock();
  if (memory == nullptr) *shared = memory = std::make_shared<device::Memory>(*runtime);
  return memory;
}

}  // namespace nsa::cann
