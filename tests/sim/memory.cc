// The memory of the simulated CANN: device memory that the host cannot touch, pinned host memory,
// and copies between them.
//
// One memfd is the device's memory. It is mapped twice: at the addresses that aclrtMalloc hands out
// with no access at all, so that a host that follows a device pointer dies on the spot, and once
// more, readable and writable, for the simulator's workers. Addresses are never handed out twice: a
// pointer that outlives its allocation can be recognized for ever.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <future>
#include <map>
#include <memory>
#include <utility>

#include "control.h"
#include "simulator.h"
#include "state.h"

namespace nsa_sim {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kRegion = std::size_t{1} << 40;  // addresses, not memory: the file is sparse

// 0xFF is NaN in every float type and -1 in every int: reading what nobody wrote shows in the
// result.
constexpr int kUnwritten = 0xFF;

std::uintptr_t address_of(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

struct Memory {
  int file = -1;
  std::byte* device = nullptr;  // PROT_NONE
  std::byte* worker = nullptr;  // the same bytes, accessible
  std::size_t next = kPage;     // offset of the next allocation
  std::size_t in_use = 0;
  std::size_t total = 0;
  std::mutex mutex;
  std::map<std::uintptr_t, std::size_t> allocations;  // device address -> size
  std::map<std::uintptr_t, std::size_t> pinned;       // host address -> size
  std::map<std::uintptr_t, std::uint64_t> serials;    // host address -> which allocation it is
  std::uint64_t next_serial = 1;

  Memory() {
    const char* megabytes = std::getenv("NSA_SIM_DEVICE_MB");
    total = (megabytes == nullptr ? 4096 : std::strtoull(megabytes, nullptr, 10)) << 20;
    file = memfd_create("nsa_sim_device", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, static_cast<off_t>(kRegion)) != 0) fail("memfd");
    device = map(PROT_NONE);
    worker = map(PROT_READ | PROT_WRITE);
  }

  std::byte* map(int protection) const {
    void* mapped = mmap(nullptr, kRegion, protection, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (mapped == MAP_FAILED) fail("mmap");
    return static_cast<std::byte*>(mapped);
  }

  [[noreturn]] static void fail(const char* what) {
    std::fprintf(stderr, "nsa_onnx simulated CANN: no device memory: %s: %s\n", what,
                 std::strerror(errno));
    std::abort();
  }
};

Memory& memory() {
  static auto* state = new Memory;  // never destroyed, see simulator.cc
  return *state;
}

std::size_t pages(std::size_t size) { return (size + kPage - 1) / kPage * kPage; }

// The allocation that `address` lies in, or null. The lock is held.
const std::pair<const std::uintptr_t, std::size_t>* find(
    const std::map<std::uintptr_t, std::size_t>& allocations, std::uintptr_t address) {
  auto after = allocations.upper_bound(address);
  if (after == allocations.begin()) return nullptr;
  --after;
  return address - after->first < after->second ? &*after : nullptr;
}

enum class Place { kDevice, kPinned, kPageable };

const char* place_name(Place place) {
  return place == Place::kDevice ? "device" : place == Place::kPinned ? "pinned host" : "host";
}

Place place_of(const void* address) {
  if (is_device_address(address)) return Place::kDevice;
  std::lock_guard<std::mutex> lock(memory().mutex);
  return find(memory().pinned, address_of(address)) ? Place::kPinned : Place::kPageable;
}

void require_place(const char* argument, const void* address, bool want_device) {
  if (address == nullptr) throw Refused{ACL_ERROR_INVALID_PARAM, text("%s is null", argument)};
  const Place place = place_of(address);
  if ((place == Place::kDevice) != want_device)
    throw Refused{ACL_ERROR_RT_PARAM_INVALID,
                  text("%s = %p is %s memory, the direction of the copy says %s", argument, address,
                       place_name(place), want_device ? "device" : "host")};
}

struct Direction {
  bool from_device, to_device;
};

Direction direction(const void* dst, const void* src, aclrtMemcpyKind kind) {
  switch (kind) {
    case ACL_MEMCPY_HOST_TO_HOST:
      return {false, false};
    case ACL_MEMCPY_HOST_TO_DEVICE:
      return {false, true};
    case ACL_MEMCPY_DEVICE_TO_HOST:
      return {true, false};
    case ACL_MEMCPY_DEVICE_TO_DEVICE:
      return {true, true};
    case ACL_MEMCPY_DEFAULT:
      return {is_device_address(src), is_device_address(dst)};
  }
  throw Refused{ACL_ERROR_INVALID_PARAM, text("kind = %d is not simulated", kind)};
}

Direction check_copy(void* dst, std::size_t dst_size, const void* src, std::size_t size,
                     aclrtMemcpyKind kind) {
  if (size > dst_size)
    throw Refused{ACL_ERROR_RT_PARAM_INVALID,
                  text("count = %zu is more than destMax = %zu", size, dst_size)};
  const Direction ways = direction(dst, src, kind);
  require_place("dst", dst, ways.to_device);
  require_place("src", src, ways.from_device);
  return ways;
}

// The host's side of a copy, as it was when the copy was asked for. Pinned memory has a serial
// number: unlike device addresses, the host's are handed out again.
struct HostSide {
  bool pinned = false;
  std::uint64_t serial = 0;
};

HostSide host_side(const void* host) {
  std::lock_guard<std::mutex> lock(memory().mutex);
  const auto* found = find(memory().pinned, address_of(host));
  return found == nullptr ? HostSide{} : HostSide{true, memory().serials.at(found->first)};
}

// Pinned memory must still be there when its turn comes.
void require_pinned(const void* host, std::size_t size, std::uint64_t serial) {
  std::lock_guard<std::mutex> lock(memory().mutex);
  const auto* found = find(memory().pinned, address_of(host));
  if (found == nullptr || memory().serials.at(found->first) != serial)
    throw DeviceFault{ACL_ERROR_RT_SYS_DMA,
                      text("copy uses pinned host memory at %p that has been freed", host)};
  if (address_of(host) + size > found->first + found->second)
    throw DeviceFault{
        ACL_ERROR_RT_SYS_DMA,
        text("copy uses %zu bytes at %p, past the end of the pinned host memory", size, host)};
}

// Host memory that may be gone by now is reached through the kernel: an error, not a crash.
void copy_host(void* dst, const void* src, std::size_t size, bool host_is_source, HostSide side) {
  const void* host = host_is_source ? src : dst;
  if (side.pinned) {
    require_pinned(host, size, side.serial);
    std::memcpy(dst, src, size);
    return;
  }
  iovec local{host_is_source ? dst : const_cast<void*>(src), size};
  iovec remote{const_cast<void*>(host), size};
  const ssize_t copied = host_is_source ? process_vm_readv(getpid(), &local, 1, &remote, 1, 0)
                                        : process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
  if (copied == static_cast<ssize_t>(size)) return;
  if (copied < 0 && (errno == ENOSYS || errno == EPERM)) {  // a sandbox without these calls
    std::memcpy(dst, src, size);
    return;
  }
  throw DeviceFault{ACL_ERROR_RT_SYS_DMA,
                    text("copy uses %zu bytes of host memory at %p that is gone", size, host)};
}

void copy(void* dst, const void* src, std::size_t size, Direction ways, HostSide side) {
  constexpr int kFault = ACL_ERROR_RT_SYS_DMA;
  void* to = ways.to_device ? device_bytes(dst, size, kFault, "copy's dst") : dst;
  const void* from = ways.from_device ? device_bytes(src, size, kFault, "copy's src") : src;
  if (ways.to_device == ways.from_device)
    std::memmove(to, from, size);
  else
    copy_host(to, from, size, ways.to_device, side);
}

}  // namespace

bool is_device_address(const void* address) {
  const std::uintptr_t offset = address_of(address) - address_of(memory().device);
  return offset < kRegion;
}

std::byte* device_bytes(const void* address, std::size_t size, int code, const char* what) {
  Memory& state = memory();
  if (!is_device_address(address))
    throw DeviceFault{code, text("%s: %p is no device address", what, address)};
  std::lock_guard<std::mutex> lock(state.mutex);
  const auto* found = find(state.allocations, address_of(address));
  if (found == nullptr)
    throw DeviceFault{
        code, text("%s: device address %p is not allocated (freed too early?)", what, address)};
  const std::size_t left = found->second - (address_of(address) - found->first);
  if (size > left)
    throw DeviceFault{
        code, text("%s: %zu bytes at device address %p, the allocation ends after %zu", what, size,
                   address, left)};
  return state.worker + (address_of(address) - address_of(state.device));
}

void* allocate_device(std::size_t size) {
  Memory& state = memory();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (size == 0) throw Refused{ACL_ERROR_INVALID_PARAM, "size is 0"};
  if (size > state.total - state.in_use || state.next + pages(size) + kPage > kRegion)
    throw Refused{ACL_ERROR_RT_MEMORY_ALLOCATION, text("%zu bytes asked, %zu of %zu left", size,
                                                       state.total - state.in_use, state.total)};
  std::byte* address = state.device + state.next;
  std::memset(state.worker + state.next, kUnwritten, size);
  state.next += pages(size) + kPage;  // a page that belongs to nobody after every allocation
  state.in_use += size;
  state.allocations[address_of(address)] = size;
  add_handle(Kind::kDeviceMemory, address);
  return address;
}

void free_device(void* address) {
  if (address == nullptr) throw Refused{ACL_ERROR_INVALID_PARAM, "devPtr is null"};
  Memory& state = memory();
  std::lock_guard<std::mutex> lock(state.mutex);
  const auto found = state.allocations.find(address_of(address));
  if (found == state.allocations.end())
    throw Refused{ACL_ERROR_RT_PARAM_INVALID,
                  text("%p is not the start of a live allocation", address)};
  state.in_use -= found->second;
  // Gives the pages back. What a task still running on them writes is lost, as it should be.
  fallocate(state.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
            static_cast<off_t>(address_of(address) - address_of(state.device)),
            static_cast<off_t>(pages(found->second)));
  state.allocations.erase(found);
  remove_handle(Kind::kDeviceMemory, address);
}

void* allocate_pinned(std::size_t size) {
  if (size == 0) throw Refused{ACL_ERROR_INVALID_PARAM, "size is 0"};
  void* address = std::aligned_alloc(kPage, pages(size));
  if (address == nullptr) throw std::bad_alloc();
  std::memset(address, kUnwritten, size);
  std::lock_guard<std::mutex> lock(memory().mutex);
  memory().pinned[address_of(address)] = size;
  memory().serials[address_of(address)] = memory().next_serial++;
  add_handle(Kind::kPinnedMemory, address);
  return address;
}

void free_pinned(void* address) {
  if (address == nullptr) throw Refused{ACL_ERROR_INVALID_PARAM, "hostPtr is null"};
  std::lock_guard<std::mutex> lock(memory().mutex);
  if (memory().pinned.erase(address_of(address)) == 0)
    throw Refused{ACL_ERROR_RT_PARAM_INVALID,
                  text("%p was not allocated by aclrtMallocHost", address)};
  memory().serials.erase(address_of(address));
  remove_handle(Kind::kPinnedMemory, address);
  std::free(address);
}

std::size_t device_bytes_in_use() {
  std::lock_guard<std::mutex> lock(memory().mutex);
  return memory().in_use;
}

std::size_t device_bytes_total() { return memory().total; }

void copy_now(void* dst, std::size_t dst_size, const void* src, std::size_t size,
              aclrtMemcpyKind kind) {
  if (size == 0) return;
  const Direction ways = check_copy(dst, dst_size, src, size, kind);
  copy(dst, src, size, ways, host_side(ways.to_device ? src : dst));
}

void copy_later(void* dst, std::size_t dst_size, const void* src, std::size_t size,
                aclrtMemcpyKind kind, aclrtStream stream) {
  if (size == 0) return;
  const Direction ways = check_copy(dst, dst_size, src, size, kind);
  const HostSide side = host_side(ways.to_device ? src : dst);
  if (side.pinned || ways.from_device == ways.to_device) {
    submit(stream, "memcpy", [=] { copy(dst, src, size, ways, side); });
    return;
  }
  // Pageable memory of the host: the call returns when the copy is over, or has failed (CANN 8.5;
  // 8.0 promised nothing). The promise is the task's alone: it breaks when the task is gone.
  auto over = std::make_shared<std::promise<void>>();
  const std::future<void> end = over->get_future();
  submit(stream, "memcpy", [=, over = std::move(over)] { copy(dst, src, size, ways, side); });
  end.wait();
}

}  // namespace nsa_sim
