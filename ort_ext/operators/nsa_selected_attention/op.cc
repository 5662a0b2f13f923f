// See op.h.
#include "operators/nsa_selected_attention/op.h"

namespace nsa::selected_attention {

// [T1, N1, Dv]: the shape of query, but for the last dim.
void Operator::InferShape(OrtShapeInferContext* context) {
  ort::InferredType type = ort::InputType(context, Index::kQuery, 3);
  type.TakeDim(2, ort::InputType(context, Index::kValue, 3), 2);
  ort::SetOutputType(context, type);
}

Node::Node(const OrtKernelInfo* info) {
  const auto number = [&](const char* name) {
    return ort::IntAttribute(info, Operator::kName, name);
  };
  attributes.scale = ort::FloatAttribute(info, Operator::kName, "scale_value");
  attributes.heads = number("head_num");
  attributes.select_block = number("select_block_size");
  attributes.select_count = number("select_block_count");
  attributes.causal = number("causal");
  ort::RequireValidNode(Operator::kName, CheckAttributes(attributes));
}

Inputs::Inputs(OrtKernelContext* context, const Node& node,
               std::optional<const int32_t*> topk_on_host)
    : query(ort::Input(context, Index::kQuery)),
      key(ort::Input(context, Index::kKey)),
      value(ort::Input(context, Index::kValue)) {
  const ort::Tensor topk = ort::Input(context, Index::kTopkIndices);
  const ort::Tensor query_ends = ort::Input(context, Index::kActualSeqQlen);
  const ort::Tensor key_ends = ort::Input(context, Index::kActualSeqKvlen);
  ort::RequireValid(MakePlan({query.shape(), key.shape(), value.shape(), topk.shape(),
                              node.attributes, topk_on_host.value_or(topk.as<int32_t>()),
                              Lengths::Of(query_ends.as<int64_t>(), query_ends.shape()),
                              Lengths::Of(key_ends.as<int64_t>(), key_ends.shape())},
                             &plan));
}

}  // namespace nsa::selected_attention
