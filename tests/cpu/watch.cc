// Memory whose reads are counted, address by address: x86-64 Linux. An access to a protected page
// faults, is counted, and runs as a single step with the page open; then the page is closed again.
//
//   watch_memory(bytes) -> address; fill it; watch_start(); call what is tested; watch_stop();
//   watch_count(address): how often an access began there
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

constexpr size_t kBytes = size_t{1} << 20;
constexpr greg_t kTrapFlag = 0x100;

unsigned char* memory = nullptr;
size_t used = 0;
uint16_t counts[kBytes];
unsigned char* open_page = nullptr;
struct sigaction before_fault, before_step;

size_t PageSize() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

void OnFault(int, siginfo_t* info, void* context) {
  auto* address = static_cast<unsigned char*>(info->si_addr);
  if (address < memory || address >= memory + kBytes) _exit(99);
  ++counts[address - memory];
  open_page = memory + static_cast<size_t>(address - memory) / PageSize() * PageSize();
  mprotect(open_page, PageSize(), PROT_READ | PROT_WRITE);
  static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_EFL] |= kTrapFlag;
}

void OnStep(int, siginfo_t*, void* context) {
  mprotect(open_page, PageSize(), PROT_NONE);
  static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_EFL] &= ~kTrapFlag;
}

void Handle(int signal, void (*handler)(int, siginfo_t*, void*), struct sigaction* before) {
  struct sigaction action = {};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO;
  sigaction(signal, &action, before);
}

}  // namespace

extern "C" {

// Zeros that nothing shares a page with. Null when there is no room left.
void* watch_memory(size_t bytes) {
  if (memory == nullptr) {
    void* mapped =
        mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    memory = static_cast<unsigned char*>(mapped);
  }
  const size_t size = (bytes / PageSize() + 1) * PageSize();
  if (used + size > kBytes) return nullptr;
  used += size;
  return memory + used - size;
}

void watch_start() {
  std::memset(counts, 0, sizeof counts);
  Handle(SIGSEGV, OnFault, &before_fault);
  Handle(SIGTRAP, OnStep, &before_step);
  mprotect(memory, kBytes, PROT_NONE);
}

void watch_stop() {
  mprotect(memory, kBytes, PROT_READ | PROT_WRITE);
  sigaction(SIGSEGV, &before_fault, nullptr);
  sigaction(SIGTRAP, &before_step, nullptr);
}

int watch_count(const void* address) {
  return counts[static_cast<const unsigned char*>(address) - memory];
}
}
