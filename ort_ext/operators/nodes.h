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

// One way of computing an operator on an Ascend device. Node: what a node says of itself. Run: the
// operator's own description of one checked and planned call.
template <class Node, class Run>
struct Offer : cann::Offer {
  // Throws device::Error if the backend can never run the node: asked when a session is made.
  void (*require_node)(const Node& node);
  // Puts work on the stream and does not wait for it. Throws device::Error; what cannot be done at
  // all is refused before anything is launched.
  void (*launch)(const Run& run, device::Launch& launch);
};

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
  CannNode(const OrtKernelInfo* info, DType dtype, cann::BackendChoice choice)
      : node_(info),
        dtype_(dtype),
        device_(info, Operator::kName, cann::SharedMemory()),
        launch_(device_.Require([&] { return Choose(choice); })) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* context) const noexcept {
    return ort::Guarded([&] { Operator::RunOnDevice(context, node_, dtype_, device_, launch_); });
  }

 private:
  using Launch = decltype(Operator::kOffers[0].launch);

  Launch Choose(cann::BackendChoice choice) const {
    const std::vector<cann::Offer> offers(std::begin(Operator::kOffers),
                                          std::end(Operator::kOffers));
    const auto& offer = Operator::kOffers[cann::ChooseOffer(choice, offers)];
    offer.require_node(node_);
    return offer.launch;
  }

  typename Operator::Node node_;
  DType dtype_;
  ort::DeviceNode device_;
  Launch launch_;
};

}  // namespace nsa

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NODES_H_
