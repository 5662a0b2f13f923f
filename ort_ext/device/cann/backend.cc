// See backend.h.
#include "device/cann/backend.h"

#include <stdexcept>

#include "device/cann/library.h"

namespace nsa::cann {
namespace {

struct Candidate {
  const char* name;
  BackendChoice choice;
};

// In the order of preference: our kernels have the wider limits.
constexpr Candidate kCandidates[] = {
    {"ascend_kernels", BackendChoice::kAscendKernels},
    {"aclnn", BackendChoice::kAclnn},
};

}  // namespace

BackendChoice ParseBackend(const std::string& name) {
  if (name.empty() || name == "auto") return BackendChoice::kAuto;
  for (const Candidate& candidate : kCandidates) {
    if (name == candidate.name) return candidate.choice;
  }
  throw std::invalid_argument(std::string(kBackendKey) +
                              " must be auto, ascend_kernels or aclnn, got '" + name + "'");
}

bool ParseCheck(const std::string& value) {
  if (value.empty() || value == "1") return true;
  if (value == "0") return false;
  throw std::invalid_argument(std::string(kCheckKey) + " must be 1 or 0, got '" + value + "'");
}

size_t ChooseOffer(BackendChoice choice, const std::vector<Offer>& offers) {
  std::string reasons;
  for (const Candidate& candidate : kCandidates) {
    if (choice != BackendChoice::kAuto && choice != candidate.choice) continue;
    std::string reason = "does not have this operator";
    for (size_t i = 0; i < offers.size(); ++i) {
      if (offers[i].backend != candidate.choice) continue;
      try {
        offers[i].require();
        return i;
      } catch (const CannError& error) {
        reason = error.what();
      }
    }
    reasons += std::string(reasons.empty() ? "" : "; ") + candidate.name + ": " + reason;
  }
  throw CannError("no Ascend backend can be used: " + reasons);
}

std::string DescribeBackends(const std::vector<Offer>& offers) {
  std::string lines;
  for (const Candidate& candidate : kCandidates) {
    lines += std::string(candidate.name) + ": ";
    try {
      for (const Offer& offer : offers) {
        if (offer.backend == candidate.choice) offer.require();
      }
      lines += "ok\n";
    } catch (const CannError& error) {
      lines += std::string(error.what()) + "\n";
    }
  }
  return lines;
}

}  // namespace nsa::cann
