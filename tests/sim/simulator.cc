// The inside of the simulated CANN: calls, failures on demand, the log, the live handles, the
// report at exit.
#include "simulator.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "control.h"
#include "state.h"

namespace nsa_sim {

std::string text(const char* format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  return line;
}

namespace {

constexpr std::array<const char*, static_cast<std::size_t>(Kind::kKinds)> kKindNames = {
    "device_memory", "pinned_memory", "streams", "events",     "contexts", "data_buffers",
    "tensor_descs",  "op_attrs",      "tensors", "int_arrays", "executors"};

struct ArmedFailure {
  std::string function;  // "*": any
  std::uint64_t remaining;
  int code;
};

struct Calls {
  std::mutex mutex;
  std::unordered_map<std::string, std::uint64_t> counts;
  std::uint64_t total = 0;
  std::vector<ArmedFailure> armed;
  std::uint64_t failing_allocation = 0;  // 0: none armed
  int log = -1;
};

struct Handles {
  std::mutex mutex;
  std::array<std::set<const void*>, static_cast<std::size_t>(Kind::kKinds)> live;
};

// Never destroyed: the wheels call in while the process is being taken down.
Calls& calls() {
  static auto* state = new Calls;
  return *state;
}

Handles& handles() {
  static auto* state = new Handles;
  return *state;
}

thread_local std::string recent_error;
thread_local std::string handed_out_error;  // what the last aclGetRecentErrMsg points to

std::uint64_t number(const char* variable, std::uint64_t otherwise = 0) {
  const char* value = std::getenv(variable);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

// NSA_SIM_FAIL=name:nth[:code][,name:nth[:code]...]
void arm_from_environment() {
  const char* value = std::getenv("NSA_SIM_FAIL");
  std::string rest = value == nullptr ? "" : value;
  while (!rest.empty()) {
    const std::string item = rest.substr(0, rest.find(','));
    rest.erase(0, item.size() + 1);
    const std::size_t first = item.find(':');
    if (first == std::string::npos) continue;
    const std::size_t second = item.find(':', first + 1);
    const int code = second == std::string::npos ? 0 : std::atoi(item.c_str() + second + 1);
    nsa_sim_fail_call(item.substr(0, first).c_str(),
                      std::strtoull(item.c_str() + first + 1, nullptr, 10), code);
  }
}

// Code of the failure that this call was chosen for, 0 for none. Counts the call.
int count_call(const char* name, unsigned needs) {
  Calls& state = calls();
  std::lock_guard<std::mutex> lock(state.mutex);
  ++state.counts[name];
  ++state.total;
  int code = 0;
  for (auto armed = state.armed.begin(); armed != state.armed.end();) {
    const bool matches = armed->function == "*" || armed->function == name;
    if (matches && --armed->remaining == 0) {
      code = armed->code;
      armed = state.armed.erase(armed);
    } else {
      ++armed;
    }
  }
  if ((needs & kAllocation) && state.failing_allocation > 0 && --state.failing_allocation == 0)
    code = ACL_ERROR_RT_MEMORY_ALLOCATION;
  return code;
}

void check_needs(unsigned needs) {
  if ((needs & (kInit | kContext)) && !is_initialized())
    throw Refused{ACL_ERROR_UNINITIALIZE, "aclInit has not been called"};
  if ((needs & kContext) && !has_context())
    throw Refused{
        ACL_ERROR_RT_CONTEXT_NULL,
        "this thread has no device: aclrtSetDevice or aclrtSetCurrentContext comes first"};
}

int refused(const char* name, const Refused& reason) {
  set_error(text("[simulated CANN] %s: %s", name, reason.message.c_str()));
  return reason.code;
}

}  // namespace

void set_error(std::string message) { recent_error = std::move(message); }

void log_line(const std::string& line) {
  const int file = [] {
    std::lock_guard<std::mutex> lock(calls().mutex);
    return calls().log;
  }();
  if (file < 0) return;
  // One write per line: lines of several threads do not mix.
  [[maybe_unused]] const ssize_t written = write(file, line.data(), line.size());
}

aclError run_call(const char* name, unsigned needs, const std::function<int()>& body) {
  const int injected = count_call(name, needs);
  int code = ACL_SUCCESS;
  try {
    if (injected == 0 || (needs & kCarriedOut)) {
      check_needs(needs);
      code = body();
    }
    if (injected != 0) throw Refused{injected, "failed because a test asked for it"};
  } catch (const Refused& reason) {
    code = refused(name, reason);
  } catch (const DeviceFault& reason) {  // of a call that does its work at once
    code = refused(name, Refused{reason.code, reason.message});
  } catch (const std::bad_alloc&) {
    code = refused(name, Refused{ACL_ERROR_RT_MEMORY_ALLOCATION, "out of host memory"});
  }
  log_line(text("call %d %s %d\n", gettid(), name, code));
  return code;
}

// ---------------------------------------------------------------------------------------------------

void add_handle(Kind kind, const void* handle) {
  std::lock_guard<std::mutex> lock(handles().mutex);
  handles().live[static_cast<std::size_t>(kind)].insert(handle);
}

bool is_live(Kind kind, const void* handle) {
  std::lock_guard<std::mutex> lock(handles().mutex);
  return handles().live[static_cast<std::size_t>(kind)].count(handle) != 0;
}

void remove_handle(Kind kind, const void* handle) {
  std::lock_guard<std::mutex> lock(handles().mutex);
  if (handles().live[static_cast<std::size_t>(kind)].erase(handle) == 0)
    throw Refused{ACL_ERROR_RT_INVALID_HANDLE,
                  text("%p is none of the live %s (destroyed twice?)", handle,
                       kKindNames[static_cast<std::size_t>(kind)])};
}

void require_live(Kind kind, const void* handle, const char* argument) {
  if (!is_live(kind, handle))
    throw Refused{ACL_ERROR_RT_INVALID_HANDLE,
                  text("%s = %p is none of the live %s", argument, handle,
                       kKindNames[static_cast<std::size_t>(kind)])};
}

namespace {

std::size_t live_count(std::size_t kind) {
  std::lock_guard<std::mutex> lock(handles().mutex);
  return handles().live[kind].size();
}

std::string report() {
  std::string line = "{";
  for (std::size_t kind = 0; kind < kKindNames.size(); ++kind)
    line += text("\"%s\": %zu, ", kKindNames[kind], live_count(kind));
  line += text("\"device_bytes\": %zu, \"unseen_failures\": %llu, \"pending_tasks\": %llu, ",
               device_bytes_in_use(), static_cast<unsigned long long>(unseen_failures()),
               static_cast<unsigned long long>(nsa_sim_pending_tasks()));
  line += text("\"calls\": %llu}\n", static_cast<unsigned long long>(nsa_sim_calls("*")));
  return line;
}

bool something_left() {
  for (std::size_t kind = 0; kind < kKindNames.size(); ++kind)
    if (live_count(kind) != 0) return true;
  return unseen_failures() != 0 || nsa_sim_pending_tasks() != 0;
}

// The dynamic loader runs these after and before those of every library that needs this one: what
// the wheels release in their own destructors is counted as released.
__attribute__((constructor)) void set_up() {
  nsa_sim_set_log(std::getenv("NSA_SIM_LOG"));
  nsa_sim_set_delay_us(number("NSA_SIM_DELAY_US"));
  nsa_sim_fail_allocation(number("NSA_SIM_FAIL_ALLOC"));
  nsa_sim_fail_task(number("NSA_SIM_FAIL_TASK"));
  arm_from_environment();
}

__attribute__((destructor)) void take_down() {
  const char* path = std::getenv("NSA_SIM_REPORT");
  if (path == nullptr && !something_left()) return;
  const std::string line = report();
  std::FILE* file = path == nullptr ? stderr : std::fopen(path, "w");
  if (file == nullptr) return;
  if (path == nullptr) std::fputs("nsa_onnx simulated CANN: left at exit ", file);
  std::fputs(line.c_str(), file);
  if (path != nullptr) std::fclose(file);
}

}  // namespace
}  // namespace nsa_sim

// ---------------------------------------------------------------------------------------------------

using namespace nsa_sim;

extern "C" {

// Handed out once: the next call returns null unless something failed in between. onnxruntime takes
// any message that it finds after one of its own kernels for a failure of that kernel.
const char* aclGetRecentErrMsg() {
  if (recent_error.empty()) return nullptr;
  handed_out_error = std::move(recent_error);
  recent_error.clear();
  return handed_out_error.c_str();
}

void nsa_sim_fail_call(const char* function, uint64_t nth, int32_t code) {
  if (nth == 0) return;
  std::lock_guard<std::mutex> lock(calls().mutex);
  calls().armed.push_back({function, nth, code == 0 ? ACL_ERROR_FAILURE : code});
}

void nsa_sim_fail_allocation(uint64_t nth) {
  std::lock_guard<std::mutex> lock(calls().mutex);
  calls().failing_allocation = nth;
}

void nsa_sim_clear_failures() {
  nsa_sim_fail_allocation(0);
  nsa_sim_fail_task(0);
  std::lock_guard<std::mutex> lock(calls().mutex);
  calls().armed.clear();
}

void nsa_sim_set_log(const char* path) {
  const int opened =
      path == nullptr ? -1 : open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  std::lock_guard<std::mutex> lock(calls().mutex);
  // The old file stays open: another thread may be about to write its line.
  calls().log = opened;
}

uint64_t nsa_sim_calls(const char* function) {
  std::lock_guard<std::mutex> lock(calls().mutex);
  if (std::strcmp(function, "*") == 0) return calls().total;
  const auto found = calls().counts.find(function);
  return found == calls().counts.end() ? 0 : found->second;
}

int64_t nsa_sim_live(const char* kind) {
  for (std::size_t i = 0; i < kKindNames.size(); ++i)
    if (std::strcmp(kind, kKindNames[i]) == 0) return static_cast<int64_t>(live_count(i));
  return -1;
}

int32_t nsa_sim_is_device_address(const void* address) { return is_device_address(address); }
}
