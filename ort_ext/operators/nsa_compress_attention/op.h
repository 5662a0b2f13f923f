// NsaCompressAttention(query, key, value, actual_seq_qlen, actual_cmp_seq_kvlen,
// actual_sel_seq_kvlen, atten_mask?, topk_mask?) -> attention_out, topk_indices: what onnxruntime
// is told of the operator, what a node says of itself, and the inputs of a run.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_OP_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_OP_H_

#include <array>
#include <optional>
#include <vector>

#include "operators/nodes.h"
#include "ort/custom_op.h"
#include "ort/device_node.h"
#include "plan/nsa_compress_attention.h"

namespace nsa::compress_attention {

struct Index {
  enum : size_t {
    kQuery,
    kKey,
    kValue,
    kActualSeqQlen,
    kActualCmpSeqKvlen,
    kActualSelSeqKvlen,
    kAttenMask,
    kTopkMask
  };
};

// What a node says about itself; INVALID_ARGUMENT if that can never run.
struct Node {
  AttentionAttributes attributes;

  explicit Node(const OrtKernelInfo* info);
};

// The inputs of a run, checked in full, and what follows from them. The lengths are in host memory
// on every execution provider, the others are where the provider has them.
struct Inputs {
  ort::Tensor query;
  ort::Tensor key;
  ort::Tensor value;
  std::optional<ort::Tensor> atten_mask;
  std::optional<ort::Tensor> topk_mask;
  std::vector<Sequence> plan;

  Inputs(OrtKernelContext* context, const Node& node);
  std::array<int64_t, 3> output_dims() const {
    return {query.dims[0], query.dims[1], value.dims[2]};
  }
  std::array<int64_t, 3> selected_dims(const Node& node) const {
    return {query.dims[0], key.dims[1], node.attributes.select_count};
  }
};

struct Run;  // device.h

struct Operator {
  static constexpr const char* kName = spec::nsa_compress_attention::kOp;
  static constexpr ort::Port kInputs[] = {
      {ort::Element::kOwn},
      {ort::Element::kOwn},
      {ort::Element::kOwn},
      {ort::Element::kInt64, /*in_host_memory=*/true},
      {ort::Element::kInt64, /*in_host_memory=*/true},
      {ort::Element::kInt64, /*in_host_memory=*/true},
      {ort::Element::kBool, /*in_host_memory=*/false, /*optional=*/true},
      {ort::Element::kBool, /*in_host_memory=*/false, /*optional=*/true}};
  static constexpr ort::Port kOutputs[] = {{ort::Element::kOwn}, {ort::Element::kInt32}};
  static constexpr int kUpdated = -1;

  static void InferShape(OrtShapeInferContext* context);

  // What nodes.h asks for.
  using Node = compress_attention::Node;
  static const std::array<OperatorBackend<Node, Run>, 1> kBackends;
  static void RunOnCpu(OrtKernelContext* context, const Node& node, DType dtype);
  static void RunOnDevice(OrtKernelContext* context, const Node& node, DType dtype,
                          const ort::DeviceNode& device, LaunchFunction<Run> launch_run);
};

}  // namespace nsa::compress_attention

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_ATTENTION_OP_H_
