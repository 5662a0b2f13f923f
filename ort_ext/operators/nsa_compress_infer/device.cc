// NsaCompressInfer for onnxruntime's CANN execution provider.
#include "operators/nsa_compress_infer/device.h"

#include "device/cann/runtime.h"

namespace nsa::compress_decode {
namespace {

constexpr Offer kAclnn{cann::BackendChoice::kAclnn, RequireAclnnNode, LaunchAclnn};
constexpr Offer kAscendKernels{cann::BackendChoice::kAscendKernels, [](const Node&) {},
                               LaunchAscendKernels};

const Offer& Choose(cann::BackendChoice choice, const Node& node) {
  choice = cann::ChooseBackend(choice, {kAclnn.backend, kAscendKernels.backend});
  const Offer& offer = choice == kAclnn.backend ? kAclnn : kAscendKernels;
  offer.require(node);
  return offer;
}

}  // namespace

CannKernel::CannKernel(const OrtKernelInfo* info, DType dtype, cann::BackendChoice choice)
    : node_(info),
      dtype_(dtype),
      device_(info, Operator::kName, cann::SharedMemory()),
      offer_(*device_.Require([&] { return &Choose(choice, node_); })) {}

void CannKernel::Compute(OrtKernelContext* context) const {
  const Inputs inputs(context, node_);
  void* output = ort::Output(context, inputs.cache.shape());
  const size_t bytes = inputs.cache_bytes();
  if (bytes == 0) return;
  const Run run{dtype_,
                inputs.input.data,
                inputs.weight.data,
                output,
                inputs.input.dims[0],
                node_.page,
                inputs.input.dims[2],
                inputs.input.dims[3],
                inputs.cache.dims[0],
                node_.block,
                &inputs.plan};
  const bool in_place = output == inputs.cache.data;
  device_.Run(
      context,
      [&](device::Launch& launch) {
        if (!in_place) {
          launch.runtime().CopyOnDevice(output, inputs.cache.data, bytes, launch.stream());
        }
        if (!inputs.plan.empty()) offer_.launch(run, launch);
      },
      [&] {
        const bool changed = in_place && run.cache_touched;
        return changed ? "; the slots of cache that this step writes may have changed" : "";
      });
}

}  // namespace nsa::compress_decode
