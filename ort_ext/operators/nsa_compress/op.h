// NsaCompress(input, weight, actual_seq_len) -> output: what onnxruntime is told of the operator,
// what a node says of itself, and the inputs of a run.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_OP_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_OP_H_

#include <array>
#include <vector>

#include "operators/nodes.h"
#include "ort/custom_op.h"
#include "ort/device_node.h"
#include "plan/nsa_compress.h"

namespace nsa::compress {

struct Index {
  enum : size_t { kInput, kWeight, kActualSeqLen };
};

// What a node says about itself; INVALID_ARGUMENT if that can never run.
struct Node {
  int64_t block;
  int64_t stride;

  explicit Node(const OrtKernelInfo* info);
};

// The inputs of a run, checked in full, and what follows from them. actual_seq_len is in host
// memory on every execution provider, the other two are where the provider has them.
struct Inputs {
  ort::Tensor input;
  ort::Tensor weight;
  ort::Tensor actual_seq_len;
  std::vector<RowRun> plan;

  // `hands_on_lengths`: actual_seq_len is used beyond the plan, too, so it is a copy of the
  // caller's.
  Inputs(OrtKernelContext* context, const Node& node, bool hands_on_lengths = false);
  std::array<int64_t, 3> output_dims() const;
};

struct Run;  // device.h

struct Operator {
  static constexpr const char* kName = spec::nsa_compress::kOp;
  static constexpr ort::Port kInputs[] = {
      {ort::Element::kOwn}, {ort::Element::kOwn}, {ort::Element::kInt64, /*in_host_memory=*/true}};
  static constexpr ort::Port kOutputs[] = {{ort::Element::kOwn}};
  static constexpr int kUpdated = -1;

  static void InferShape(OrtShapeInferContext* context);

  // What nodes.h asks for.
  using Node = compress::Node;
  static const OperatorBackend<Node, Run> kBackends[2];
  static void RunOnCpu(OrtKernelContext* context, const Node& node, DType dtype);
  static void RunOnDevice(OrtKernelContext* context, const Node& node, DType dtype,
                          const ort::DeviceNode& device, LaunchFunction<Run> launch_run);
};

}  // namespace nsa::compress

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_OP_H_
