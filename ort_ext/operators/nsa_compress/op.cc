// See op.h.
#include "operators/nsa_compress/op.h"

#include "plan/windows.h"

namespace nsa::compress {

// [T, N, D] -> [T', N, D]. T' depends on values that are not to be had here: two nodes' T' may
// differ even where their inputs' shapes and attributes agree.
void Operator::InferShape(OrtShapeInferContext* context) {
  ort::InferredType type = ort::InputType(context, Index::kInput, 3);
  ort::SetUnknown(&type, 0);
  ort::SetOutputType(context, type);
}

Node::Node(const OrtKernelInfo* info)
    : block(ort::IntAttribute(info, Operator::kName, "compress_block_size")),
      stride(ort::IntAttribute(info, Operator::kName, "compress_stride")) {
  ort::RequireValidNode(Operator::kName, CheckAttributes(block, stride));
}

Inputs::Inputs(OrtKernelContext* context, const Node& node, bool hands_on_lengths)
    : input(ort::Input(context, Index::kInput)),
      weight(ort::Input(context, Index::kWeight)),
      actual_seq_len(ort::Input(context, Index::kActualSeqLen, hands_on_lengths)) {
  ort::RequireValid(CheckLengthsRank(actual_seq_len.shape()));
  ort::RequireValid(MakePlan({input.shape(), weight.shape(), node.block, node.stride,
                              actual_seq_len.as<int64_t>(), actual_seq_len.dims[0]},
                             &plan));
}

std::array<int64_t, 3> Inputs::output_dims() const {
  return {PlannedRows(plan), input.dims[1], input.dims[2]};
}

}  // namespace nsa::compress
