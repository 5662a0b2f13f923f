// See nsa_compress_infer.h.
#include "nsa_compress_infer.h"

#include <cstring>

namespace nsa::ort {

using Index = InferIndex;

// cache_out has the shape of cache.
OrtStatusPtr InferInferShape(const OrtCustomOp*, OrtShapeInferContext* context) noexcept {
  return Guarded([&] { SetOutputType(context, InputType(context, Index::kCache, 3)); });
}

// cache_out may take over cache's buffer where nothing else reads it. (An alias map would share it
// with other readers, too, who then see the new values.)
size_t InferMayInplace(int** input_index, int** output_index) noexcept {
  static int from[] = {Index::kCache};
  static int to[] = {0};
  *input_index = from;
  *output_index = to;
  return 1;
}

InferNode::InferNode(const OrtKernelInfo* info)
    : block(IntAttribute(info, spec::nsa_compress_infer::kOp, "compress_block_size")),
      stride(IntAttribute(info, spec::nsa_compress_infer::kOp, "compress_stride")),
      page(IntAttribute(info, spec::nsa_compress_infer::kOp, "page_block_size")) {
  RequireValidNode(spec::nsa_compress_infer::kOp, CheckInferAttributes(block, stride, page));
}

InferInputs::InferInputs(OrtKernelContext* context, const InferNode& node)
    : input(Input(context, Index::kInput)),
      weight(Input(context, Index::kWeight)),
      cache(Input(context, Index::kCache)) {
  const Tensor slots = Input(context, Index::kSlotMapping);
  const Tensor seq = Input(context, Index::kActualSeqLen);
  const std::optional<Tensor> table = OptionalInput(context, Index::kBlockTable);
  RequireValid(CheckLengthsRank(seq.shape()));
  RequireValid(PlanInfer({input.shape(), weight.shape(), slots.shape(), cache.shape(),
                          table ? table->shape() : Shape{nullptr, 0}, node.block, node.stride,
                          node.page, slots.as<int32_t>(), table ? table->as<int32_t>() : nullptr,
                          seq.as<int64_t>(), seq.dims[0], table.has_value()},
                         &plan));
}

size_t InferInputs::cache_bytes() const {
  size_t bytes = sizeof(uint16_t);
  for (const int64_t dim : cache.dims) bytes *= static_cast<size_t>(dim);
  return bytes;
}

OrtStatusPtr InferKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return Guarded([&] { Compute(context); });
}

void InferKernel::Compute(OrtKernelContext* context) const {
  const InferInputs inputs(context, node_);
  // Everything is known to be right: from here on, memory changes.
  void* output = Output(context, inputs.cache.shape());
  const size_t bytes = inputs.cache_bytes();
  if (output != inputs.cache.data && bytes > 0) std::memcpy(output, inputs.cache.data, bytes);
  const cpu::InferData data{inputs.input.as<uint16_t>(),
                            inputs.weight.as<uint16_t>(),
                            static_cast<uint16_t*>(output),
                            inputs.input.dims[2],
                            inputs.input.dims[3],
                            node_.block,
                            node_.page,
                            inputs.plan.data(),
                            static_cast<int64_t>(inputs.plan.size())};
  cpu::RunInfer(dtype_, data, SessionThreads(context));
}

OrtStatusPtr InferOp::CreateKernelV2(const OrtApi&, const OrtKernelInfo* info,
                                     void** kernel) const noexcept {
  return Guarded([&] { *kernel = new InferKernel(info, dtype()); });
}

}  // namespace nsa::ort
