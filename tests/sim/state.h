// What the files of the simulated libascendcl.so tell one another; the other libraries see
// simulator.h only.
#ifndef NSA_ONNX_TESTS_SIM_STATE_H_
#define NSA_ONNX_TESTS_SIM_STATE_H_

#include <cstdint>
#include <string>

#include "simulator.h"

namespace nsa_sim {

bool is_initialized();            // ascendcl.cc: between aclInit and aclFinalize
bool has_context();               // streams.cc: the calling thread's device
std::uint64_t unseen_failures();  // streams.cc: failed tasks that nobody waited for
void log_line(const std::string& line);

}  // namespace nsa_sim

#endif  // NSA_ONNX_TESTS_SIM_STATE_H_
