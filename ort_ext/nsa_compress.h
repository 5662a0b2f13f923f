// NsaCompress(input, weight, actual_seq_len) -> output for onnxruntime.
#ifndef NSA_ONNX_ORT_EXT_NSA_COMPRESS_H_
#define NSA_ONNX_ORT_EXT_NSA_COMPRESS_H_

#include <array>

#include "ort_common.h"

namespace nsa::ort {

struct CompressIndex {
  enum : size_t { kInput, kWeight, kActualSeqLen };
};

// What a node says about itself; INVALID_ARGUMENT if that can never run.
struct CompressNode {
  int64_t block;
  int64_t stride;

  explicit CompressNode(const OrtKernelInfo* info);
};

// The inputs of a run, checked in full, and what follows from them. actual_seq_len is in host
// memory on every execution provider, the other two are where the provider has them.
struct CompressInputs {
  Tensor input;
  Tensor weight;
  Tensor actual_seq_len;
  std::vector<RowRun> plan;

  // `hands_on_lengths`: actual_seq_len is used beyond the plan, too, so it is a copy of the
  // caller's.
  CompressInputs(OrtKernelContext* context, const CompressNode& node,
                 bool hands_on_lengths = false);
  std::array<int64_t, 3> output_dims() const;
};

OrtStatusPtr InferCompressShape(const OrtCustomOp*, OrtShapeInferContext* context) noexcept;

// What a definition says whatever its execution provider. There is one per provider and element
// type: onnxruntime 1.21 has no type constraint over several inputs.
template <class Op, class Kernel>
class CompressDefinition : public Ort::CustomOpBase<Op, Kernel, true> {
 public:
  explicit CompressDefinition(cpu::DType dtype) : dtype_(dtype) {
    OrtCustomOp::version = NegotiatedApiVersion();
    OrtCustomOp::InferOutputShapeFn = InferCompressShape;
  }

  const char* GetName() const { return spec::nsa_compress::kOp; }
  size_t GetInputTypeCount() const { return 3; }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    return IsHostInput(index) ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 : OnnxType(dtype_);
  }
  OrtMemType GetInputMemoryType(size_t index) const {
    return IsHostInput(index) ? OrtMemTypeCPUInput : OrtMemTypeDefault;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return OnnxType(dtype_); }

 protected:
  cpu::DType dtype() const { return dtype_; }

 private:
  static bool IsHostInput(size_t index) { return index == CompressIndex::kActualSeqLen; }

  cpu::DType dtype_;
};

class CompressKernel {
 public:
  CompressKernel(const OrtKernelInfo* info, cpu::DType dtype) : node_(info), dtype_(dtype) {}
  OrtStatusPtr ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  void Compute(OrtKernelContext* context) const;

  CompressNode node_;
  cpu::DType dtype_;
};

class CompressOp : public CompressDefinition<CompressOp, CompressKernel> {
 public:
  using CompressDefinition::CompressDefinition;

  OrtStatusPtr CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info,
                              void** kernel) const noexcept;
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
};

}  // namespace nsa::ort

#endif  // NSA_ONNX_ORT_EXT_NSA_COMPRESS_H_
