// See nsa_compress_infer.h.
#include "nsa_compress_infer.h"

#include <cstring>

namespace nsa::ort {
namespace {

enum InputIndex : size_t { kInput, kWeight, kSlotMapping, kCache, kActualSeqLen, kBlockTable };

// cache_out has the shape of cache.
OrtStatusPtr InferShape(const OrtCustomOp*, OrtShapeInferContext* context) noexcept {
  return Guarded([&] { SetOutputType(context, InputType(context, kCache, 3)); });
}

// cache_out may take over cache's buffer where nothing else reads it. (An alias map would share it
// with other readers, too, who then see the new values.)
size_t MayInplace(int** input_index, int** output_index) noexcept {
  static int from[] = {kCache};
  static int to[] = {0};
  *input_index = from;
  *output_index = to;
  return 1;
}

size_t ByteCount(Shape shape) {
  size_t bytes = sizeof(uint16_t);
  for (int64_t axis = 0; axis < shape.rank; ++axis) bytes *= static_cast<size_t>(shape[axis]);
  return bytes;
}

}  // namespace

InferKernel::InferKernel(const OrtKernelInfo* info, cpu::DType dtype)
    : block_(IntAttribute(info, spec::kInferOp, "compress_block_size")),
      stride_(IntAttribute(info, spec::kInferOp, "compress_stride")),
      page_(IntAttribute(info, spec::kInferOp, "page_block_size")),
      dtype_(dtype) {
  RequireValidNode(spec::kInferOp, CheckInferAttributes(block_, stride_, page_));
}

OrtStatusPtr InferKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return Guarded([&] { Compute(context); });
}

void InferKernel::Compute(OrtKernelContext* context) const {
  const Tensor input = Input(context, kInput);
  const Tensor weight = Input(context, kWeight);
  const Tensor slots = Input(context, kSlotMapping);
  const Tensor cache = Input(context, kCache);
  const Tensor seq = Input(context, kActualSeqLen);
  const std::optional<Tensor> table = OptionalInput(context, kBlockTable);
  RequireValid(CheckLengthsRank(seq.shape()));

  std::vector<SlotWrite> plan;
  RequireValid(PlanInfer(
      {input.shape(), weight.shape(), slots.shape(), cache.shape(),
       table ? table->shape() : Shape{nullptr, 0}, block_, stride_, page_, slots.as<int32_t>(),
       table ? table->as<int32_t>() : nullptr, seq.as<int64_t>(), seq.dims[0], table.has_value()},
      &plan));
  // Everything is known to be right: from here on, memory changes.
  void* output = Output(context, cache.shape());
  const size_t bytes = ByteCount(cache.shape());
  if (output != cache.data && bytes > 0) std::memcpy(output, cache.data, bytes);
  const cpu::InferData data{input.as<uint16_t>(),
                            weight.as<uint16_t>(),
                            static_cast<uint16_t*>(output),
                            input.dims[2],
                            input.dims[3],
                            block_,
                            page_,
                            plan.data(),
                            static_cast<int64_t>(plan.size())};
  cpu::RunInfer(dtype_, data, SessionThreads(context));
}

InferOp::InferOp(cpu::DType dtype) : dtype_(dtype) {
  OrtCustomOp::version = NegotiatedApiVersion();
  // Older ones crash before they call it where an optional input is left out with an empty name.
  constexpr uint32_t kFirstThatInfersOptional = 24;
  if (RuntimeApiVersion() >= kFirstThatInfersOptional) {
    OrtCustomOp::InferOutputShapeFn = InferShape;
  }
  OrtCustomOp::GetMayInplace = MayInplace;
  OrtCustomOp::ReleaseMayInplace = [](int*, int*) {};
}

OrtStatusPtr InferOp::CreateKernelV2(const OrtApi&, const OrtKernelInfo* info,
                                     void** kernel) const noexcept {
  return Guarded([&] { *kernel = new InferKernel(info, dtype_); });
}

ONNXTensorElementDataType InferOp::GetInputType(size_t index) const {
  switch (index) {
    case kSlotMapping:
    case kBlockTable:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case kActualSeqLen:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    default:
      return OnnxType(dtype_);
  }
}

OrtMemType InferOp::GetInputMemoryType(size_t index) const {
  const bool host = index == kSlotMapping || index == kActualSeqLen || index == kBlockTable;
  return host ? OrtMemTypeCPUInput : OrtMemTypeDefault;
}

OrtCustomOpInputOutputCharacteristic InferOp::GetInputCharacteristic(size_t index) const {
  return index == kBlockTable ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}

}  // namespace nsa::ort
