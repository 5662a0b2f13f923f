// See nsa_compress.h.
#include "nsa_compress.h"

namespace nsa::ort {
namespace {

enum InputIndex : size_t { kInput, kWeight, kActualSeqLen };

// [T, N, D] -> [T', N, D]. T' depends on values that are not to be had here: two nodes' T' may
// differ even where their inputs' shapes and attributes agree.
OrtStatusPtr InferShape(const OrtCustomOp*, OrtShapeInferContext* context) noexcept {
  return Guarded([&] {
    InferredType type = InputType(context, kInput, 3);
    SetUnknown(&type, 0);
    SetOutputType(context, type);
  });
}

}  // namespace

CompressKernel::CompressKernel(const OrtKernelInfo* info, cpu::DType dtype)
    : block_(IntAttribute(info, spec::kCompressOp, "compress_block_size")),
      stride_(IntAttribute(info, spec::kCompressOp, "compress_stride")),
      dtype_(dtype) {
  RequireValidNode(spec::kCompressOp, CheckCompressAttributes(block_, stride_));
}

OrtStatusPtr CompressKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return Guarded([&] { Compute(context); });
}

void CompressKernel::Compute(OrtKernelContext* context) const {
  const Tensor input = Input(context, kInput);
  const Tensor weight = Input(context, kWeight);
  const Tensor seq = Input(context, kActualSeqLen);
  RequireValid(CheckLengthsRank(seq.shape()));

  std::vector<RowRun> plan;
  RequireValid(PlanCompress(
      {input.shape(), weight.shape(), block_, stride_, seq.as<int64_t>(), seq.dims[0]}, &plan));
  const int64_t output_dims[] = {PlannedRows(plan), input.dims[1], input.dims[2]};
  void* output = Output(context, {output_dims, 3});
  const cpu::CompressData data{input.as<uint16_t>(),
                               weight.as<uint16_t>(),
                               static_cast<uint16_t*>(output),
                               input.dims[1],
                               input.dims[2],
                               block_,
                               stride_,
                               plan.data(),
                               static_cast<int64_t>(plan.size())};
  cpu::RunCompress(dtype_, data, SessionThreads(context));
}

CompressOp::CompressOp(cpu::DType dtype) : dtype_(dtype) {
  OrtCustomOp::version = NegotiatedApiVersion();
  OrtCustomOp::InferOutputShapeFn = InferShape;
}

OrtStatusPtr CompressOp::CreateKernelV2(const OrtApi&, const OrtKernelInfo* info,
                                        void** kernel) const noexcept {
  return Guarded([&] { *kernel = new CompressKernel(info, dtype_); });
}

ONNXTensorElementDataType CompressOp::GetInputType(size_t index) const {
  return index == kActualSeqLen ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 : OnnxType(dtype_);
}

OrtMemType CompressOp::GetInputMemoryType(size_t index) const {
  return index == kActualSeqLen ? OrtMemTypeCPUInput : OrtMemTypeDefault;
}

}  // namespace nsa::ort
