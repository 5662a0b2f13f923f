// See backend.h.
#include "cann/backend.h"

#include <array>

namespace nsa::cann {
namespace {

struct Candidate {
  const char* name;
  BackendChoice choice;
  const Backend& (*get)();
};

// In the order of preference: our kernels have the wider limits.
constexpr std::array<Candidate, 2> kCandidates{{
    {"ascend_kernels", BackendChoice::kAscendKernels, GetAscendKernelsBackend},
    {"aclnn", BackendChoice::kAclnn, GetAclnnBackend},
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

const Backend& GetBackend(BackendChoice choice) {
  std::string reasons;
  for (const Candidate& candidate : kCandidates) {
    if (choice != BackendChoice::kAuto && choice != candidate.choice) continue;
    try {
      return candidate.get();
    } catch (const CannError& error) {
      reasons += std::string(reasons.empty() ? "" : "; ") + candidate.name + ": " + error.what();
    }
  }
  throw CannError("no Ascend backend can be used: " + reasons);
}

std::string DescribeBackends() {
  std::string lines;
  for (const Candidate& candidate : kCandidates) {
    lines += std::string(candidate.name) + ": ";
    try {
      candidate.get();
      lines += "ok\n";
    } catch (const CannError& error) {
      lines += std::string(error.what()) + "\n";
    }
  }
  return lines;
}

}  // namespace nsa::cann
