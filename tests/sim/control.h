// How a test steers the simulated CANN: C functions exported by libascendcl.so (through ctypes or
// dlsym), each with an environment variable that sets the same before the first call. README.md
// lists both.
#ifndef NSA_ONNX_TESTS_SIM_CONTROL_H_
#define NSA_ONNX_TESTS_SIM_CONTROL_H_

#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {
// Every task waits this long, on its stream's worker, before it runs. NSA_SIM_DELAY_US
void nsa_sim_set_delay_us(uint64_t microseconds);

// The `nth` call (1 is the next one) of `function` returns `code`; "*" stands for every function.
// `code` 0 means the default, 500001 (ACL_ERROR_FAILURE). Several may be armed at once.
// NSA_SIM_FAIL=name:nth[:code]
void nsa_sim_fail_call(const char* function, uint64_t nth, int32_t code);

// The `nth` allocation (device or pinned host) from now on fails for want of memory.
// NSA_SIM_FAIL_ALLOC=nth
void nsa_sim_fail_allocation(uint64_t nth);

// The `nth` task put on a stream from now on fails when its turn comes: the call that submitted it
// has returned success long before. NSA_SIM_FAIL_TASK=nth
void nsa_sim_fail_task(uint64_t nth);

// Forget every armed failure.
void nsa_sim_clear_failures();

// One line per call and per task is appended to this file; null stops it. NSA_SIM_LOG
void nsa_sim_set_log(const char* path);

// How often `function` has been called since the process began; "*" counts every function.
uint64_t nsa_sim_calls(const char* function);

// How many live handles there are of a kind that the report at exit names ("device_memory",
// "events", ...). -1: no such kind.
int64_t nsa_sim_live(const char* kind);

// Tasks submitted and not yet finished, on all streams.
uint64_t nsa_sim_pending_tasks();

// 1 if the address lies in device memory (live or not), else 0.
int32_t nsa_sim_is_device_address(const void* address);
}
#pragma GCC visibility pop

#endif  // NSA_ONNX_TESTS_SIM_CONTROL_H_
