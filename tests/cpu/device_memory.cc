// Memory that launches borrow (ort_ext/device/memory.h), on an accelerator whose streams get on
// only when this test says so: no work may get a block that another stream's still uses, nor memory
// of the host that is about to be read.
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "device/launch.h"
#include "device/memory.h"

namespace nsa::device {
namespace {

#define CHECK(condition)                                                     \
  do {                                                                       \
    if (condition) break;                                                    \
    std::fprintf(stderr, "%s:%d: not %s\n", __FILE__, __LINE__, #condition); \
    std::exit(1);                                                            \
  } while (false)

struct HeldMark : Mark {
  explicit HeldMark(bool* passed) : passed(passed) {}
  bool Passed() const override { return *passed; }
  void Wait() const noexcept override { *passed = true; }

  bool* passed;
};

// Its streams stand still until their flags are set.
class Held : public Runtime {
 public:
  void* Allocate(Place, size_t size) const override {
    ++allocated;
    return std::malloc(size);
  }
  void Free(Place, void* address) const noexcept override {
    ++freed;
    std::free(address);
  }
  std::shared_ptr<const Mark> MarkStream(Stream stream) const override {
    return std::make_shared<HeldMark>(static_cast<bool*>(stream));
  }
  void CopyToDevice(void*, const void*, size_t, Stream) const override {}
  void CopyOnDevice(void*, const void*, size_t, Stream) const override {}
  void Fetch(void*, const void*, size_t, Stream) const override {}
  void Synchronize(Stream) const noexcept override {}

  mutable int allocated = 0;
  mutable int freed = 0;
};

// Launches work on the stream, with a borrowed block.
void Use(Memory* memory, Place place, bool* stream, int device = 0, size_t size = 100) {
  Launch launch(*memory, device, stream);
  place == Place::kDevice ? launch.Scratch(size) : launch.Fetch(nullptr, size);
  launch.MarkBlocks();
}

void TestDeviceMemoryWaitsForOtherStreams() {
  const Held runtime;
  Memory memory(runtime);
  bool first = false, second = false;
  Use(&memory, Place::kDevice, &first);
  Use(&memory, Place::kDevice, &first);  // behind its own work
  CHECK(runtime.allocated == 1);
  Use(&memory, Place::kDevice, &second);
  CHECK(runtime.allocated == 2);
  first = true;
  bool third = false;
  Use(&memory, Place::kDevice, &third);  // what the first is done with
  CHECK(runtime.allocated == 2);
  second = third = true;
  Use(&memory, Place::kPinned, &first);
  CHECK(runtime.allocated == 3);
  Use(&memory, Place::kDevice, &first, 1);
  CHECK(runtime.allocated == 4);
  Use(&memory, Place::kDevice, &first, 0, 4097);  // the others have 4096 bytes
  CHECK(runtime.allocated == 5);
}

void TestPinnedMemoryWaitsForItsOwnStreamToo() {
  const Held runtime;
  Memory memory(runtime);
  bool stream = false;
  Use(&memory, Place::kPinned, &stream);
  Use(&memory, Place::kPinned, &stream);
  CHECK(runtime.allocated == 2);
  stream = true;
  Use(&memory, Place::kPinned, &stream);
  CHECK(runtime.allocated == 2);
}

void TestBlocksAreFreedWhenTheirWorkIsOver() {
  const Held runtime;
  bool stream = false;
  {
    Memory memory(runtime);
    Use(&memory, Place::kDevice, &stream);
    CHECK(runtime.freed == 0 && !stream);
  }
  CHECK(runtime.freed == 1 && stream);
}

}  // namespace
}  // namespace nsa::device

int main() {
  nsa::device::TestDeviceMemoryWaitsForOtherStreams();
  nsa::device::TestPinnedMemoryWaitsForItsOwnStreamToo();
  nsa::device::TestBlocksAreFreedWhenTheirWorkIsOver();
  std::puts("lent rightly");
}
