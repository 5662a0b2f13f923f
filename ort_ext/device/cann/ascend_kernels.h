// The ascend_kernels backend: our own kernels, from libnsa_ascend_kernels.so (folder
// ascend_kernels/). It takes every call that an operator's contract allows. Here is what every
// operator's launch needs; the launches themselves are in operators/*/ascend_kernels.cc.
#ifndef NSA_ONNX_ORT_EXT_DEVICE_CANN_ASCEND_KERNELS_H_
#define NSA_ONNX_ORT_EXT_DEVICE_CANN_ASCEND_KERNELS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "ascend_kernels/launch.h"
#include "device/cann/library.h"
#include "device/launch.h"
#include "plan/dtype.h"

namespace nsa::cann {

// A function of the library. Throws CannError if CANN or the library is not there, if the library
// is of another version, or does not have the function.
void* KernelFunction(const std::string& name);

// Vector cores of the device.
int64_t VectorCores();

int32_t KernelType(DType dtype);

// The vector cores that a plan launches; 0: there is nothing to launch.
int64_t PlanBlocks(const std::vector<int64_t>& plan);

// Launches an operator's kernel. It has two functions of the library, of types Plan and Start
// as its launch.h declares them: `name`_plan and `name`.
template <class Plan, class Start>
class KernelLauncher {
 public:
  explicit KernelLauncher(const std::string& name)
      : name_(name),
        plan_(reinterpret_cast<Plan*>(KernelFunction(name + "_plan"))),
        start_(reinterpret_cast<Start*>(KernelFunction(name))) {}

  // Calls start(function, plan, blocks), which launches by function(...), with the plan of `call`
  // on the device; not where there is nothing to launch.
  template <class Call, class Body>
  void Launch(const Call& call, device::Launch& launch, Body start) const {
    const std::vector<int64_t> plan = MakePlan(call);
    const int64_t blocks = PlanBlocks(plan);
    if (blocks == 0) return;
    const void* uploaded = launch.Upload(plan.data(), plan.size() * sizeof(int64_t));
    Require(start(start_, uploaded, blocks), name_.c_str());
  }

 private:
  // The size of a plan is known when it has been made.
  template <class Call>
  std::vector<int64_t> MakePlan(const Call& call) const {
    constexpr size_t kUsualWords = 4096;
    std::vector<int64_t> words(kUsualWords);
    while (true) {
      const int64_t count =
          plan_(&call, VectorCores(), words.data(), static_cast<int64_t>(words.size()));
      if (count < 0) throw CannError("no memory for the plan of a launch");
      const bool complete = static_cast<size_t>(count) <= words.size();
      words.resize(static_cast<size_t>(count));
      if (complete) return words;
    }
  }

  std::string name_;
  Plan* plan_;
  Start* start_;
};

}  // namespace nsa::cann

#endif  // NSA_ONNX_ORT_EXT_DEVICE_CANN_ASCEND_KERNELS_H_
