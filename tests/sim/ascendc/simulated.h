// What the simulated libnsa_ascend_kernels.so offers besides ascend_kernels/launch.h: for tests,
// for the counters, and for a simulated runtime that has streams and device memory of its own.
#ifndef NSA_ONNX_TESTS_SIM_ASCENDC_SIMULATED_H_
#define NSA_ONNX_TESTS_SIM_ASCENDC_SIMULATED_H_

#include <stdint.h>

#pragma GCC visibility push(default)
extern "C" {

// How a launch reaches streams and device memory. Without one (null, the default) a launch runs at
// once, in the calling thread, and takes its addresses as they are.
struct NsaAscendSimDevice {
  // Puts a task on a stream; returns 0 or an ACL code. Where that is 0, task(argument) is called
  // once, on the stream's worker; where it returns non-zero the device has failed with that code.
  int32_t (*submit)(void* stream, const char* name, int32_t (*task)(void*), void* argument);
  // On the worker: the bytes behind device memory, or null if they are not all in one live
  // allocation.
  void* (*bytes)(const void* address, uint64_t size);
};
void nsa_ascend_sim_use_device(const NsaAscendSimDevice* device);

// The order in which later launches run their blocks: 0 ascending, else shuffled with this seed.
void nsa_ascend_sim_set_seed(uint64_t seed);

// The last finished launch of the process: its counters as JSON, its error ("" if it had none).
// Both return the length of the text and write at most `size` bytes of it, NUL included.
int64_t nsa_ascend_sim_counters(char* text, int64_t size);
int64_t nsa_ascend_sim_error(char* text, int64_t size);
}
#pragma GCC visibility pop

#endif  // NSA_ONNX_TESTS_SIM_ASCENDC_SIMULATED_H_
