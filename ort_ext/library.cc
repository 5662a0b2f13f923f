// The functions of c_api.h about the whole library: its version, and the instruction set that the
// CPU kernels run on.
#include "c_api/arguments.h"
#include "cpu/targets.h"
#include "nsa_spec.h"

const char* nsa_cpu_target(void) { return nsa::cpu::TargetName(); }

const char* nsa_cpu_targets(void) { return nsa::cpu::TargetNames(); }

int nsa_set_cpu_target(const char* name, char* error, int64_t error_size) {
  return nsa::c_api::Guarded(error, error_size, [&] { return nsa::cpu::SetTarget(name); });
}

const char* nsa_version(void) { return nsa::spec::kVersion; }
