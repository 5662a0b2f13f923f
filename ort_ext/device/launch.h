// One run of a node on an accelerator: the stream that its work is put on, and the memory that it
// borrows meanwhile.
#ifndef NSA_ONNX_ORT_EXT_DEVICE_LAUNCH_H_
#define NSA_ONNX_ORT_EXT_DEVICE_LAUNCH_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "device/memory.h"
#include "device/runtime.h"

namespace nsa::device {

// All memory is the device's and stays valid for everything that has been put on the stream before
// the run of the node ends.
class Launch {
 public:
  Launch(Memory& memory, int device, Stream stream)
      : memory_(memory), device_(device), stream_(stream) {}
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;
  // The device need not have got to the work yet: what it uses is marked (MarkBlocks).
  ~Launch();

  Stream stream() const { return stream_; }
  const Runtime& runtime() const { return memory_.runtime(); }
  void* Scratch(size_t bytes) { return Borrow(Place::kDevice, bytes); }
  // Scratch memory that holds `bytes` of `data`, which is free on return.
  void* Upload(const void* data, size_t bytes);
  // The device's `bytes` of `data`, on the host: waits for all work before it on the stream. Valid
  // until the run of the node ends.
  const void* Fetch(const void* data, size_t bytes);
  // All that has been borrowed is in use up to here.
  void MarkBlocks();

 private:
  void* Borrow(Place place, size_t bytes);

  Memory& memory_;
  int device_;
  Stream stream_;
  std::vector<std::unique_ptr<Memory::Block>> blocks_;
};

}  // namespace nsa::device

#endif  // NSA_ONNX_ORT_EXT_DEVICE_LAUNCH_H_
