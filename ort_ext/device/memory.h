// An accelerator's memory that launches borrow: scratch on the device, and pinned memory of the
// host for what they upload.
//
// It is our own, not onnxruntime's. KernelContext_GetScratchBuffer ends the process when the device
// has no memory left (in 1.24 an exception leaves a noexcept function), and onnxruntime's allocator
// does not know of streams.
#ifndef NSA_ONNX_ORT_EXT_DEVICE_MEMORY_H_
#define NSA_ONNX_ORT_EXT_DEVICE_MEMORY_H_

#include <memory>
#include <mutex>
#include <vector>

#include "device/runtime.h"

namespace nsa::device {

// Blocks that were borrowed once and may be again. One for all nodes of the process, because the
// vendor's operators want 16 MiB each and those of one stream run one after the other; it is freed
// with the last node.
class Memory {
 public:
  struct Block {
    const Runtime& runtime;
    Place place;
    int device;
    size_t size;
    void* address;
    Stream stream;                     // that used it last
    std::shared_ptr<const Mark> mark;  // behind that use; null: it is over

    ~Block();
  };

  explicit Memory(const Runtime& runtime) : runtime_(runtime) {}

  const Runtime& runtime() const { return runtime_; }

  // A block of at least `size` bytes that nothing on any stream uses any more, or for device memory
  // that at most `stream` does, which will be done with it before it comes to the new work.
  std::unique_ptr<Block> Borrow(Place place, int device, size_t size, Stream stream);
  void Return(std::unique_ptr<Block> block);

 private:
  const Runtime& runtime_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Block>> blocks_;  // by size
};

}  // namespace nsa::device

#endif  // NSA_ONNX_ORT_EXT_DEVICE_MEMORY_H_
