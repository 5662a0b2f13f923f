// NsaCompress for onnxruntime's CANN execution provider.
#include "operators/nsa_compress/device.h"

#include "device/cann/runtime.h"
#include "operators/nsa_compress/op.h"

namespace nsa::compress {
namespace {

constexpr Offer kAclnn{cann::BackendChoice::kAclnn, LaunchAclnn};
constexpr Offer kAscendKernels{cann::BackendChoice::kAscendKernels, LaunchAscendKernels};

const Offer& Choose(cann::BackendChoice choice) {
  choice = cann::ChooseBackend(choice, {kAclnn.backend, kAscendKernels.backend});
  return choice == kAclnn.backend ? kAclnn : kAscendKernels;
}

}  // namespace

CannKernel::CannKernel(const OrtKernelInfo* info, DType dtype, cann::BackendChoice choice)
    : node_(info),
      dtype_(dtype),
      device_(info, Operator::kName, cann::SharedMemory()),
      offer_(*device_.Require([&] { return &Choose(choice); })) {}

void CannKernel::Compute(OrtKernelContext* context) const {
  const Inputs inputs(context, node_, /*hands_on_lengths=*/true);
  const std::array<int64_t, 3> dims = inputs.output_dims();
  void* output = ort::Output(context, {dims.data(), 3});
  if (dims[0] == 0 || dims[2] == 0) return;  // D may be 0
  const Run run{dtype_,
                inputs.input.data,
                inputs.weight.data,
                output,
                inputs.input.dims[0],
                dims[1],
                dims[2],
                dims[0],
                node_.block,
                node_.stride,
                inputs.actual_seq_len.as<int64_t>(),
                inputs.actual_seq_len.dims[0],
                &inputs.plan};
  device_.Run(
      context, [&](device::Launch& launch) { offer_.launch(run, launch); }, [] { return ""; });
}

}  // namespace nsa::compress
