// See memory.h.
#include "device/memory.h"

#include <algorithm>
#include <utility>

namespace nsa::device {
namespace {

// Sizes are powers of two, so that growing ones do not leave a block behind for every size.
size_t RoundUp(size_t size) {
  size_t rounded = 4096;
  while (rounded < size) rounded *= 2;
  return rounded;
}

}  // namespace

Memory::Block::~Block() {
  if (mark) mark->Wait();
  runtime.Free(place, address);
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
  return std::unique_ptr<Block>(new Block{runtime_, place, device, rounded,
                                          runtime_.Allocate(place, rounded), stream, nullptr});
}

void Memory::Return(std::unique_ptr<Block> block) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto larger = std::find_if(blocks_.begin(), blocks_.end(),
                                   [&](const auto& other) { return other->size >= block->size; });
  blocks_.insert(larger, std::move(block));
}

}  // namespace nsa::device
