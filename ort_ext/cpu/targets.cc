// See targets.h. Compiled once per instruction set, to ask each how wide its vectors are.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/targets.cc"
#include "cpu/targets.h"

#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdlib>
#include <mutex>
#include <string_view>
#include <vector>

#include "cpu/vectors-inl.h"
#include "nsa_spec.h"

HWY_BEFORE_NAMESPACE();
namespace nsa::cpu::HWY_NAMESPACE {

// Whether the machine's vectors divide D: 384 bits of SVE are 12 lanes.
bool VectorsFit() { return spec::kAlignment % static_cast<int64_t>(hn::Lanes(DF())) == 0; }

}  // namespace nsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsa::cpu {

HWY_EXPORT(VectorsFit);

namespace {

constexpr int64_t kScalar = 0;  // no target of Highway's

struct Target {
  std::string name;
  int64_t target;
};

// Tells Highway's dispatch, of all kernels.
void Dispatch(int64_t target) {
  if (target != kScalar) hwy::GetChosenTarget().Update(target);
}

class Registry {
 public:
  Registry() {
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      Dispatch(target);
      if (HWY_DYNAMIC_POINTER(VectorsFit)()) Add(hwy::TargetName(target), target);
    }
    Add("scalar", kScalar);
    // A name this machine does not have leaves the best one in use; nsa_cpu_target says which.
    const char* wanted = std::getenv("NSA_ONNX_CPU_TARGET");
    if (wanted == nullptr || !Select(wanted)) Select("auto");
  }

  bool Select(std::string_view name) {
    if (name == "auto") name = targets_.front().name;
    // Of several threads that switch at once, the last one chooses both: dispatch and name.
    const std::lock_guard<std::mutex> lock(switching_);
    for (const Target& target : targets_) {
      if (target.name != name) continue;
      Dispatch(target.target);
      active_.store(&target, std::memory_order_release);
      return true;
    }
    return false;
  }

  const Target& Active() const { return *active_.load(std::memory_order_acquire); }
  const std::string& Names() const { return names_; }

 private:
  void Add(std::string name, int64_t target) {
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    names_ += (names_.empty() ? "" : ",") + name;
    targets_.push_back({std::move(name), target});
  }

  std::vector<Target> targets_;
  std::string names_;
  std::mutex switching_;
  std::atomic<const Target*> active_{nullptr};
};

// Never destroyed: a thread of the host may still run a kernel while the process ends.
Registry& TheRegistry() {
  static Registry* registry = new Registry();
  return *registry;
}

}  // namespace

bool ScalarInUse() { return TheRegistry().Active().target == kScalar; }

const char* TargetName() { return TheRegistry().Active().name.c_str(); }

const char* TargetNames() { return TheRegistry().Names().c_str(); }

std::string SetTarget(const char* name) {
  if (name == nullptr) return "CPU target must not be null";
  if (TheRegistry().Select(name)) return {};
  return std::string("CPU target must be auto or one of ") + TargetNames() + ", got " + name;
}

}  // namespace nsa::cpu
#endif  // HWY_ONCE
