// The inside of the simulated CANN, shared by its libraries: how a call is counted, checked, failed
// and logged; device memory; streams and events; the live handles.
#ifndef NSA_ONNX_TESTS_SIM_SIMULATOR_H_
#define NSA_ONNX_TESTS_SIM_SIMULATOR_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "acl.h"

#pragma GCC visibility push(default)
namespace nsa_sim {

// A call that is refused: what the caller gets, and what aclGetRecentErrMsg will say.
struct Refused {
  int code;
  std::string message;
};

// A task that failed on the device. It surfaces when somebody waits for its stream.
struct DeviceFault {
  int code;
  std::string message;
};

__attribute__((format(printf, 1, 2))) std::string text(const char* format, ...);

// ---------------------------------------------------------------------------------------------------
// Calls

enum Needs : unsigned {
  kNothing = 0,
  kInit = 1,        // aclInit has been called
  kContext = 2,     // the calling thread has a device (implies kInit)
  kCarriedOut = 4,  // an injected failure is reported after the work is done: releases and waits
  kAllocation = 8,  // counts for nsa_sim_fail_allocation
};

// Runs one call of an ACL function: counts and logs it, fails it where a test asked for that,
// checks what it needs, and turns Refused into the code and the message.
aclError run_call(const char* name, unsigned needs, const std::function<int()>& body);

template <class Body>
aclError call(const char* name, unsigned needs, Body body) {
  return run_call(name, needs, [&] {
    body();
    return ACL_SUCCESS;
  });
}

// The same for functions that return a pointer or a number: a default value where they fail.
template <class Result, class Body>
Result call_for(const char* name, unsigned needs, Result otherwise, Body body) {
  Result result = otherwise;
  const bool good = run_call(name, needs, [&] {
                      result = body();
                      return ACL_SUCCESS;
                    }) == ACL_SUCCESS;
  return good ? result : otherwise;
}

void set_error(std::string message);  // for aclGetRecentErrMsg of this thread

// ---------------------------------------------------------------------------------------------------
// Live handles

// Kinds whose live number the report at exit names.
enum class Kind {
  kDeviceMemory,
  kPinnedMemory,
  kStream,
  kEvent,
  kContext,
  kDataBuffer,
  kTensorDesc,
  kOpAttr,
  kTensor,
  kIntArray,
  kExecutor,
  kKinds
};

void add_handle(Kind kind, const void* handle);
void remove_handle(Kind kind, const void* handle);  // Refused if it is not live
bool is_live(Kind kind, const void* handle);
void require_live(Kind kind, const void* handle, const char* argument);

template <class T>
const T& live(Kind kind, const T* handle, const char* argument) {
  require_live(kind, handle, argument);
  return *handle;
}

// ---------------------------------------------------------------------------------------------------
// Memory

// Address of the bytes behind `size` bytes of live device memory at `address`, for workers only.
// Throws DeviceFault(code) if any of them lies outside one live allocation.
std::byte* device_bytes(const void* address, std::size_t size, int code, const char* what);
bool is_device_address(const void* address);

void* allocate_device(std::size_t size);
void free_device(void* address);
void* allocate_pinned(std::size_t size);
void free_pinned(void* address);
std::size_t device_bytes_in_use();
std::size_t device_bytes_total();

// Copies with the checks of direction and bounds. The asynchronous form checks at once and copies
// when the stream gets there; host memory is read and written at that time.
void copy_now(void* dst, std::size_t dst_size, const void* src, std::size_t size,
              aclrtMemcpyKind kind);
void copy_later(void* dst, std::size_t dst_size, const void* src, std::size_t size,
                aclrtMemcpyKind kind, aclrtStream stream);

// ---------------------------------------------------------------------------------------------------
// Streams

// Runs `work` on the stream's worker after all that was submitted before. `stream` null: the
// default stream of the calling thread's device. Throws Refused for a stream that is not live or
// not this thread's device's.
void submit(aclrtStream stream, const char* name, std::function<void()> work);

}  // namespace nsa_sim
#pragma GCC visibility pop

#endif  // NSA_ONNX_TESTS_SIM_SIMULATOR_H_
