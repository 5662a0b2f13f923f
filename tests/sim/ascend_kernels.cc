// libnsa_ascend_kernels.so (simulated) on the simulated CANN: a launch is a task of the stream's
// worker, and its pointers are followed there.
#include <vector>

#include "ascendc/simulated.h"
#include "simulator.h"

namespace nsa_sim {
namespace {

// The message of the launch that has just failed on this worker, or of another one's that failed
// at the same time.
std::string last_error() {
  std::vector<char> text(static_cast<std::size_t>(nsa_ascend_sim_error(nullptr, 0)) + 1);
  nsa_ascend_sim_error(text.data(), static_cast<int64_t>(text.size()));
  return text.data();
}

int32_t submit_launch(void* stream, const char* name, int32_t (*task)(void*), void* argument) {
  return call(name, kContext, [&] {
    submit(stream, name, [task, argument] {
      if (const int32_t code = task(argument)) throw DeviceFault{code, last_error()};
    });
  });
}

void* bytes_of(const void* address, std::uint64_t size) {
  try {
    return device_bytes(address, size, 0, "launch");
  } catch (const DeviceFault&) {
    return nullptr;
  }
}

const NsaAscendSimDevice device{submit_launch, bytes_of};

__attribute__((constructor)) void use_device() { nsa_ascend_sim_use_device(&device); }

}  // namespace
}  // namespace nsa_sim
