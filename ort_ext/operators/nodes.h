// The nodes of a model as onnxruntime runs them, the same for every operator: one class for the CPU
// and one for an Ascend device. What differs is asked of the operator's own struct `Operator`, in
// its folder's op.h; list.h has all of them.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NODES_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NODES_H_

#include <iterator>
#include <vector>

#include "device/cann/backend.h"
#include "device/cann/runtime.h"
#include "ort/common.h"
#include "ort/device_node.h"

namespace nsa {

// Puts work on the stream and does not wait for it. Run: an operator's description of a checked and
// planned call. Throws device::Error; what cannot be done at all is refused before anything is
// launched.
template <class Run>
using LaunchFunction = void (*)(const Run& run, device::Launch& launch);

// A backend that has an operator. Node: what a node of the operator says of itself.
template <class Node, class Run>
struct OperatorBackend : cann::Offer {
  // Throws device::Error if the backend can never run the node: asked when a session is made.
  void (*require_node)(const Node& node);
  LaunchFunction<Run> launch;
};

// Of a backend that can run every legal node.
template <class Node>
void EveryNode(const Node&) {}

template <class Operator>
class CpuNode {
 public:
  CpuNode(const OrtKernelInfo* info, DType dtype) : node_(info), dtype_(dtype) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* context) const noexcept {
    return ort::Guarded([&] { Operator::RunOnCpu(context, node_, dtype_); });
  }

 private:
  typename Operator::Node node_;
  DType dtype_;
};

template <class Operator>
class CannNode {
 public:
  CannNode(const OrtKernelInfo* info, DType dtype, cann::SessionChoice choice)
      : node_(info),
        dtype_(dtype),
        device_(info, Operator::kName, cann::SharedMemory(), choice.checks_indices),
        launch_(device_.Require([&] { return Choose(choice.backend); })) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* context) const noexcept {
    return ort::Guarded([&] { Operator::RunOnDevice(context, node_, dtype_, device_, launch_); });
  }

 private:
  using LaunchRun = decltype(Operator::kBackends[0].launch);

  LaunchRun Choose(cann::BackendChoice choice) const {
    const std::vector<cann::Offer> offers(std::begin(Operator::kBackends),
                                          std::end(Operator::kBackends));
    const auto& backend = Operator::kBackends[cann::ChooseOffer(choice, offers)];
    backend.require_node(node_);
    return backend.launch;
  }

  typename Operator::Node node_;
  DType dtype_;
  ort::DeviceNode device_;
  LaunchRun launch_;
};

}  // namespace nsa

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NODES_H_
