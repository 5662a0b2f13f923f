// Pinned host memory for what a launch uploads.
#ifndef NSA_ONNX_ORT_EXT_CANN_STAGING_H_
#define NSA_ONNX_ORT_EXT_CANN_STAGING_H_

#include <memory>
#include <mutex>
#include <vector>

#include "cann/library.h"

namespace nsa::cann {

// Buffers that are used again once their stream has passed the copy out of them. There are as many
// as uploads were ever under way at once. One per node: any number of its runs may use it together.
class Staging {
 public:
  Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging();

  // Puts a copy of `size` bytes to device memory on the stream. `data` is free on return.
  void Upload(void* device, const void* data, size_t size, Stream stream);

 private:
  struct Buffer;

  std::unique_ptr<Buffer> Take(size_t size);
  void Put(std::unique_ptr<Buffer> buffer);

  std::mutex mutex_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

}  // namespace nsa::cann

#endif  // NSA_ONNX_ORT_EXT_CANN_STAGING_H_
