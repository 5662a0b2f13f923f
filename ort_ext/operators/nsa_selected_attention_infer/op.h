// NsaSelectedAttentionInfer(query, key, value, topk_indices, actual_seq_kvlen, block_table) ->
// attention_out, a decode step: what onnxruntime is told of the operator, what a node says of
// itself, and the inputs of a run.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_OP_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_OP_H_

#include <array>
#include <optional>

#include "operators/nodes.h"
#include "ort/custom_op.h"
#include "ort/device_node.h"
#include "plan/nsa_selected_attention_infer.h"

namespace nsa::selected_attention_decode {

struct Index {
  enum : size_t { kQuery, kKey, kValue, kTopkIndices, kActualSeqKvlen, kBlockTable };
};

// What a node says about itself; INVALID_ARGUMENT if that can never run.
struct Node {
  AttentionAttributes attributes;

  explicit Node(const OrtKernelInfo* info);
};

// The inputs of a run, checked in full, and what follows from them. Lengths and table are in
// host memory on every execution provider, the others are where the provider has them.
struct Inputs {
  ort::Tensor query;
  ort::Tensor key;
  ort::Tensor value;
  ort::Tensor block_table;
  Plan plan;

  // `topk_on_host`: topk_indices where they lie on the device otherwise; null: they are taken as
  // they are, and the plan says nothing of them.
  Inputs(OrtKernelContext* context, const Node& node,
         std::optional<const int32_t*> topk_on_host = {});
  std::array<int64_t, 3> output_dims() const {
    return {query.dims[0], query.dims[1], value.dims[3]};
  }
};

struct Run;  // device.h

struct Operator {
  static constexpr const char* kName = spec::nsa_selected_attention_infer::kOp;
  static constexpr ort::Port kInputs[] = {{ort::Element::kOwn},
                                          {ort::Element::kOwn},
                                          {ort::Element::kOwn},
                                          {ort::Element::kInt32},
                                          {ort::Element::kInt64, /*in_host_memory=*/true},
                                          {ort::Element::kInt32, /*in_host_memory=*/true}};
  static constexpr ort::Port kOutputs[] = {{ort::Element::kOwn}};
  static constexpr int kUpdated = -1;

  static void InferShape(OrtShapeInferContext* context);

  // What nodes.h asks for.
  using Node = selected_attention_decode::Node;
  static const std::array<OperatorBackend<Node, Run>, 1> kBackends;
  static void RunOnCpu(OrtKernelContext* context, const Node& node, DType dtype);
  static void RunOnDevice(OrtKernelContext* context, const Node& node, DType dtype,
                          const ort::DeviceNode& device, LaunchFunction<Run> launch_run);
};

}  // namespace nsa::selected_attention_decode

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_SELECTED_ATTENTION_INFER_OP_H_
