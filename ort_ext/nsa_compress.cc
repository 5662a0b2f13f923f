// See nsa_compress.h.
#include "nsa_compress.h"

namespace nsa::ort {

using Index = CompressIndex;

// [T, N, D] -> [T', N, D]. T' depends on values that are not to be had here: two nodes' T' may
// differ even where their inputs' shapes and attributes agree.
OrtStatusPtr InferCompressShape(const OrtCustomOp*, OrtShapeInferContext* context) noexcept {
  return Guarded([&] {
    InferredType type = InputType(context, Index::kInput, 3);
    SetUnknown(&type, 0);
    SetOutputType(context, type);
  });
}

CompressNode::CompressNode(const OrtKernelInfo* info)
    : block(IntAttribute(info, spec::nsa_compress::kOp, "compress_block_size")),
      stride(IntAttribute(info, spec::nsa_compress::kOp, "compress_stride")) {
  RequireValidNode(spec::nsa_compress::kOp, CheckCompressAttributes(block, stride));
}

CompressInputs::CompressInputs(OrtKernelContext* context, const CompressNode& node,
                               bool hands_on_lengths)
    : input(Input(context, Index::kInput)),
      weight(Input(context, Index::kWeight)),
      actual_seq_len(Input(context, Index::kActualSeqLen, hands_on_lengths)) {
  RequireValid(CheckLengthsRank(actual_seq_len.shape()));
  RequireValid(PlanCompress({input.shape(), weight.shape(), node.block, node.stride,
                             actual_seq_len.as<int64_t>(), actual_seq_len.dims[0]},
                            &plan));
}

std::array<int64_t, 3> CompressInputs::output_dims() const {
  return {PlannedRows(plan), input.dims[1], input.dims[2]};
}

OrtStatusPtr CompressKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return Guarded([&] { Compute(context); });
}

void CompressKernel::Compute(OrtKernelContext* context) const {
  const CompressInputs inputs(context, node_);
  const std::array<int64_t, 3> dims = inputs.output_dims();
  void* output = Output(context, {dims.data(), 3});
  const cpu::CompressData data{inputs.input.as<uint16_t>(),
                               inputs.weight.as<uint16_t>(),
                               static_cast<uint16_t*>(output),
                               dims[1],
                               dims[2],
                               node_.block,
                               node_.stride,
                               inputs.plan.data(),
                               static_cast<int64_t>(inputs.plan.size())};
  cpu::RunCompress(dtype_, data, SessionThreads(context));
}

OrtStatusPtr CompressOp::CreateKernelV2(const OrtApi&, const OrtKernelInfo* info,
                                        void** kernel) const noexcept {
  return Guarded([&] { *kernel = new CompressKernel(info, dtype()); });
}

}  // namespace nsa::ort
