// What c_api.h tells and sets for the whole library.
#include <string>

#include "c_api/arguments.h"
#include "cpu/targets.h"
#include "device/cann/backend.h"
#include "nsa_spec.h"

const char* nsa_cpu_target(void) { return nsa::cpu::TargetName(); }

const char* nsa_cpu_targets(void) { return nsa::cpu::TargetNames(); }

int nsa_set_cpu_target(const char* name, char* error, int64_t error_size) {
  return nsa::c_api::Guarded(error, error_size, [&] { return nsa::cpu::SetTarget(name); });
}

const char* nsa_ascend_backends(void) {
  try {
    static const std::string lines = nsa::cann::DescribeBackends();
    return lines.c_str();
  } catch (const std::exception&) {  // out of memory
    return "";
  }
}

const char* nsa_version(void) { return nsa::spec::kVersion; }
