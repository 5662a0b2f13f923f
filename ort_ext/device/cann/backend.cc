// See backend.h.
#include "device/cann/backend.h"

#include <algorithm>
#include <array>

#include "device/cann/aclnn.h"
#include "device/cann/ascend_kernels.h"
#include "device/cann/library.h"

namespace nsa::cann {
namespace {

struct Candidate {
  const char* name;
  BackendChoice choice;
  void (*require)();  // throws CannError that says what this machine lacks
};

// In the order of preference: our kernels have the wider limits.
constexpr std::array<Candidate, 2> kCandidates{{
    {"ascend_kernels", BackendChoice::kAscendKernels, RequireAscendKernels},
    {"aclnn", BackendChoice::kAclnn, RequireAclnn},
}};

}  // namespace

BackendChoice ParseBackend(const std::string& name) {
  if (name.empty() || name == "auto") return BackendChoice::kAuto;
  for (const Candidate& candidate : kCandidates) {
    if (name == candidate.name) return candidate.choice;
  }
  throw std::invalid_argument(std::string(kBackendKey) +
                              " must be auto, ascend_kernels or aclnn, got '" + name + "'");
}

BackendChoice ChooseBackend(BackendChoice choice, std::initializer_list<BackendChoice> offered) {
  std::string reasons;
  for (const Candidate& candidate : kCandidates) {
    if (choice != BackendChoice::kAuto && choice != candidate.choice) continue;
    std::string reason = "does not have this operator";
    if (std::find(offered.begin(), offered.end(), candidate.choice) != offered.end()) {
      try {
        candidate.require();
        return candidate.choice;
      } catch (const CannError& error) {
        reason = error.what();
      }
    }
    reasons += std::string(reasons.empty() ? "" : "; ") + candidate.name + ": " + reason;
  }
  throw CannError("no Ascend backend can be used: " + reasons);
}

std::string DescribeBackends() {
  std::string lines;
  for (const Candidate& candidate : kCandidates) {
    lines += std::string(candidate.name) + ": ";
    try {
      candidate.require();
      lines += "ok\n";
    } catch (const CannError& error) {
      lines += std::string(error.what()) + "\n";
    }
  }
  return lines;
}

}  // namespace nsa::cann
