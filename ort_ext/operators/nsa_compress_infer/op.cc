// See op.h.
#include "operators/nsa_compress_infer/op.h"

#include "plan/windows.h"

namespace nsa::compress_decode {

// cache_out has the shape of cache.
void Operator::InferShape(OrtShapeInferContext* context) {
  ort::SetOutputType(context, ort::InputType(context, Index::kCache, 3));
}

Node::Node(const OrtKernelInfo* info)
    : block(ort::IntAttribute(info, Operator::kName, "compress_block_size")),
      stride(ort::IntAttribute(info, Operator::kName, "compress_stride")),
      page(ort::IntAttribute(info, Operator::kName, "page_block_size")) {
  ort::RequireValidNode(Operator::kName, CheckAttributes(block, stride, page));
}

Inputs::Inputs(OrtKernelContext* context, const Node& node)
    : input(ort::Input(context, Index::kInput)),
      weight(ort::Input(context, Index::kWeight)),
      cache(ort::Input(context, Index::kCache)) {
  const ort::Tensor slots = ort::Input(context, Index::kSlotMapping);
  const ort::Tensor seq = ort::Input(context, Index::kActualSeqLen);
  const std::optional<ort::Tensor> table = ort::OptionalInput(context, Index::kBlockTable);
  ort::RequireValid(CheckLengthsRank(seq.shape()));
  ort::RequireValid(
      MakePlan({input.shape(), weight.shape(), slots.shape(), cache.shape(),
                table ? table->shape() : Shape{nullptr, 0}, node.block, node.stride, node.page,
                slots.as<int32_t>(), table ? table->as<int32_t>() : nullptr, seq.as<int64_t>(),
                seq.dims[0], table.has_value()},
               &plan));
}

size_t Inputs::cache_bytes() const {
  size_t bytes = sizeof(uint16_t);
  for (const int64_t dim : cache.dims) bytes *= static_cast<size_t>(dim);
  return bytes;
}

}  // namespace nsa::compress_decode
