// What any accelerator's driver does for launches: memory, copies, streams. Each accelerator has
// its implementation in a folder of its own.
#ifndef NSA_ONNX_ORT_EXT_DEVICE_RUNTIME_H_
#define NSA_ONNX_ORT_EXT_DEVICE_RUNTIME_H_

#include <cstddef>
#include <memory>
#include <stdexcept>

namespace nsa::device {

using Stream = void*;

// The accelerator or its software is not there, a call into it failed, or it cannot do what is
// asked.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Of the device, or the host's that the device can read while it works.
enum class Place { kDevice, kPinned };

// A point on a stream that can be asked for.
class Mark {
 public:
  virtual ~Mark() = default;

  virtual bool Passed() const = 0;
  virtual void Wait() const noexcept = 0;
};

// What fails throws Error.
class Runtime {
 public:
  virtual ~Runtime() = default;

  virtual void* Allocate(Place place, size_t size) const = 0;
  virtual void Free(Place place, void* address) const noexcept = 0;
  virtual std::shared_ptr<const Mark> MarkStream(Stream stream) const = 0;
  // Puts a copy on the stream: from pinned memory, or from the device's own.
  virtual void CopyToDevice(void* to, const void* from, size_t size, Stream stream) const = 0;
  virtual void CopyOnDevice(void* to, const void* from, size_t size, Stream stream) const = 0;
  // Copies to pinned memory, and returns once that and all work before it on the stream is done.
  virtual void Fetch(void* to, const void* from, size_t size, Stream stream) const = 0;
  virtual void Synchronize(Stream stream) const noexcept = 0;
};

}  // namespace nsa::device

#endif  // NSA_ONNX_ORT_EXT_DEVICE_RUNTIME_H_
