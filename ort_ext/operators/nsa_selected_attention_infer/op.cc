// See op.h.
#include "operators/nsa_selected_attention_infer/op.h"

namespace nsa::selected_attention_decode {

// [B, N1, Dv]: the shape of query, but for the last dim.
void Operator::InferShape(OrtShapeInferContext* context) {
  ort::InferredType type = ort::InputType(context, Index::kQuery, 3);
  type.TakeDim(2, ort::InputType(context, Index::kValue, 4), 3);
  ort::SetOutputType(context, type);
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
  ort::RequireValidNode(Operator::kName, CheckAttributes(attributes));
}

Inputs::Inputs(OrtKernelContext* context, const Node& node,
               std::optional<const int32_t*> topk_on_host)
    : query(ort::Input(context, Index::kQuery)),
      key(ort::Input(context, Index::kKey)),
      value(ort::Input(context, Index::kValue)),
      block_table(ort::Input(context, Index::kBlockTable, /*copied=*/topk_on_host.has_value())) {
  const ort::Tensor topk = ort::Input(context, Index::kTopkIndices);
  const ort::Tensor lengths = ort::Input(context, Index::kActualSeqKvlen);
  ort::RequireValid(
      MakePlan({query.shape(), key.shape(), value.shape(), topk.shape(), block_table.shape(),
                node.attributes, topk_on_host.value_or(topk.as<int32_t>()),
                block_table.as<int32_t>(), Lengths::Of(lengths.as<int64_t>(), lengths.shape())},
               &plan));
}

}  // namespace nsa::selected_attention_decode
