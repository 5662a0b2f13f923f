// See op.h.
#include "operators/nsa_compress_attention_infer/op.h"

namespace nsa::compress_attention_decode {

// [B, N1, Dv] and [B, N2, k].
void Operator::InferShape(OrtShapeInferContext* context) {
  ort::InferredType type = ort::InputType(context, Index::kQuery, 3);
  type.TakeDim(2, ort::InputType(context, Index::kValue, 4), 3);
  ort::SetOutputType(context, type, 0);
  type.type = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  ort::SetDimFromAttribute(context, "key_value_head_num", &type, 1);
  ort::SetDimFromAttribute(context, "select_block_count", &type, 2);
  ort::SetOutputType(context, type, 1);
}

Node::Node(const OrtKernelInfo* info) {
  const auto number = [&](const char* name) {
    return ort::IntAttribute(info, Operator::kName, name);
  };
  attributes.scale = ort::FloatAttribute(info, Operator::kName, "scale_value");
  attributes.heads = number("head_num");
  attributes.kv_heads = number("key_value_head_num");
  attributes.select_block = number("select_block_size");
  attributes.select_count = number("select_block_count");
  attributes.page = number("page_block_size");
  attributes.block = number("compress_block_size");
  attributes.stride = number("compress_stride");
  ort::RequireValidNode(Operator::kName, CheckAttributes(attributes));
}

Inputs::Inputs(OrtKernelContext* context, const Node& node)
    : query(ort::Input(context, Index::kQuery)),
      key(ort::Input(context, Index::kKey)),
      value(ort::Input(context, Index::kValue)) {
  const ort::Tensor lengths = ort::Input(context, Index::kActualCmpSeqKvlen);
  const ort::Tensor table = ort::Input(context, Index::kBlockTable);
  ort::RequireValid(
      MakePlan({query.shape(), key.shape(), value.shape(), table.shape(), node.attributes,
                table.as<int32_t>(), Lengths::Of(lengths.as<int64_t>(), lengths.shape())},
               &plan));
}

}  // namespace nsa::compress_attention_decode
