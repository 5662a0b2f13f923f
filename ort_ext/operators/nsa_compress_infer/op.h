// NsaCompressInfer(input, weight, slot_mapping, cache, actual_seq_len, block_table?) -> cache_out,
// a decode step: what onnxruntime is told of the operator, what a node says of itself, and the
// inputs of a run.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_INFER_OP_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_INFER_OP_H_

#include <vector>

#include "operators/nodes.h"
#include "ort/custom_op.h"
#include "ort/device_node.h"
#include "plan/nsa_compress_infer.h"

namespace nsa::compress_decode {

struct Index {
  enum : size_t { kInput, kWeight, kSlotMapping, kCache, kActualSeqLen, kBlockTable };
};

// What a node says about itself; INVALID_ARGUMENT if that can never run.
struct Node {
  int64_t block;
  int64_t stride;
  int64_t page;

  explicit Node(const OrtKernelInfo* info);
};

// The inputs of a run, checked in full, and what follows from them. The index inputs are in host
// memory on every execution provider, the others are where the provider has them.
struct Inputs {
  ort::Tensor input;
  ort::Tensor weight;
  ort::Tensor cache;
  std::vector<SlotWrite> plan;

  Inputs(OrtKernelContext* context, const Node& node);
  size_t cache_bytes() const;
};

struct Run;  // device.h

struct Operator {
  static constexpr const char* kName = spec::nsa_compress_infer::kOp;
  static constexpr ort::Port kInputs[] = {
      {ort::Element::kOwn},
      {ort::Element::kOwn},
      {ort::Element::kInt32, /*in_host_memory=*/true},
      {ort::Element::kOwn},
      {ort::Element::kInt64, /*in_host_memory=*/true},
      {ort::Element::kInt32, /*in_host_memory=*/true, /*optional=*/true}};
  static constexpr ort::Port kOutputs[] = {{ort::Element::kOwn}};
  static constexpr int kUpdated = Index::kCache;

  static void InferShape(OrtShapeInferContext* context);

  // What nodes.h asks for.
  using Node = compress_decode::Node;
  static const OperatorBackend<Node, Run> kBackends[2];
  static void RunOnCpu(OrtKernelContext* context, const Node& node, DType dtype);
  static void RunOnDevice(OrtKernelContext* context, const Node& node, DType dtype,
                          const ort::DeviceNode& device, LaunchFunction<Run> launch_run);
};

}  // namespace nsa::compress_decode

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_NSA_COMPRESS_INFER_OP_H_
