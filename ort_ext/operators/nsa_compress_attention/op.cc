// See op.h.
#include "operators/nsa_compress_attention/op.h"

namespace nsa::compress_attention {

// [T1, N1, Dv] and [T1, N2, k].
void Operator::InferShape(OrtShapeInferContext* context) {
  ort::InferredType type = ort::InputType(context, Index::kQuery, 3);
  type.TakeDim(2, ort::InputType(context, Index::kValue, 3), 2);
  ort::SetOutputType(context, type, 0);
  type.type = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  type.TakeDim(1, ort::InputType(context, Index::kKey, 3), 1);
  ort::SetDimFromAttribute(context, "select_block_count", &type, 2);
  ort::SetOutputType(context, type, 1);
}

Node::Node(const OrtKernelInfo* info) {
  const auto number = [&](const char* name) {
    return ort::IntAttribute(info, Operator::kName, name);
  };
  attributes.scale = ort::FloatAttribute(info, Operator::kName, "scale_value");
  attributes.heads = number("head_num");
  attributes.block = number("compress_block_size");
  attributes.stride = number("compress_stride");
  attributes.select_block = number("select_block_size");
  attributes.select_count = number("select_block_count");
  ort::RequireValidNode(Operator::kName, CheckAttributes(attributes));
}

Inputs::Inputs(OrtKernelContext* context, const Node& node)
    : query(ort::Input(context, Index::kQuery)),
      key(ort::Input(context, Index::kKey)),
      value(ort::Input(context, Index::kValue)),
      atten_mask(ort::OptionalInput(context, Index::kAttenMask)),
      topk_mask(ort::OptionalInput(context, Index::kTopkMask)) {
  const ort::Tensor queries = ort::Input(context, Index::kActualSeqQlen);
  const ort::Tensor compressed = ort::Input(context, Index::kActualCmpSeqKvlen);
  const ort::Tensor blocks = ort::Input(context, Index::kActualSelSeqKvlen);
  const auto lengths = [](const ort::Tensor& tensor) {
    return Lengths::Of(tensor.as<int64_t>(), tensor.shape());
  };
  const auto shape = [](const std::optional<ort::Tensor>& mask) {
    return mask ? mask->shape() : Shape{nullptr, 0};
  };
  ort::RequireValid(
      MakePlan({query.shape(), key.shape(), value.shape(), shape(topk_mask), shape(atten_mask),
                topk_mask.has_value(), atten_mask.has_value(), node.attributes, lengths(queries),
                lengths(compressed), lengths(blocks)},
               &plan));
}

}  // namespace nsa::compress_attention
