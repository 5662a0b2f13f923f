// Which instruction set runs: names, detection, NSA_ONNX_CPU_TARGET.
#include "cpu/kernels.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "cpu/simd.h"

namespace nsa::cpu {
namespace {

struct Target {
  std::string name;
  const Kernels* kernels;
};

class Registry {
 public:
  Registry() {
    for (const SimdTarget& simd : SimdTargets()) {
      std::string name = simd.name;
      std::transform(name.begin(), name.end(), name.begin(),
                     [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
      targets_.push_back({name, simd.kernels});
    }
    targets_.push_back({"scalar", &ScalarKernels()});
    for (const Target& target : targets_) {
      names_ += (names_.empty() ? "" : ",") + target.name;
    }
    // A name this machine does not have leaves the best one in use; nsa_cpu_target says which.
    const char* wanted = std::getenv("NSA_ONNX_CPU_TARGET");
    if (wanted == nullptr || !Select(wanted)) Select("auto");
  }

  bool Select(std::string_view name) {
    if (name == "auto") name = targets_.front().name;
    for (const Target& target : targets_) {
      if (target.name == name) {
        active_.store(&target, std::memory_order_release);
        return true;
      }
    }
    return false;
  }

  const Target& Active() const { return *active_.load(std::memory_order_acquire); }
  const std::string& Names() const { return names_; }

 private:
  std::vector<Target> targets_;
  std::string names_;
  std::atomic<const Target*> active_{nullptr};
};

// Never destroyed: a thread of the host may still run a kernel while the process ends.
Registry& TheRegistry() {
  static Registry* registry = new Registry();
  return *registry;
}

}  // namespace

// The kernels begin with a whole cache line of what they are given.
constexpr size_t kUnaligned = kLineFloats - 1;

size_t ScratchSize(const CompressData& data) {
  const size_t heads = static_cast<size_t>(data.heads);
  // The weights of a chunk's tokens and the sums, for each of the overlapping windows.
  return heads * OverlappingWindows(data) * static_cast<size_t>(data.stride + data.dim) +
         kUnaligned;
}

size_t ScratchSize(const InferData& data) {
  // The weights and the sums of one window.
  return static_cast<size_t>(data.heads * (data.block + data.dim)) + kUnaligned;
}

const Kernels& ActiveKernels() { return *TheRegistry().Active().kernels; }

const char* TargetName() { return TheRegistry().Active().name.c_str(); }

const char* TargetNames() { return TheRegistry().Names().c_str(); }

std::string SetTarget(const char* name) {
  if (name == nullptr) return "CPU target must not be null";
  if (TheRegistry().Select(name)) return {};
  return std::string("CPU target must be auto or one of ") + TargetNames() + ", got " + name;
}

}  // namespace nsa::cpu
