// NsaCompressInfer(input, weight, slot_mapping, cache, actual_seq_len, block_table?) -> cache_out
// for onnxruntime.
#ifndef NSA_ONNX_ORT_EXT_NSA_COMPRESS_INFER_H_
#define NSA_ONNX_ORT_EXT_NSA_COMPRESS_INFER_H_

#include "ort_common.h"

namespace nsa::ort {

struct InferIndex {
  enum : size_t { kInput, kWeight, kSlotMapping, kCache, kActualSeqLen, kBlockTable };
};

// What a node says about itself; INVALID_ARGUMENT if that can never run.
struct InferNode {
  int64_t block;
  int64_t stride;
  int64_t page;

  explicit InferNode(const OrtKernelInfo* info);
};

// The inputs of a run, checked in full, and what follows from them. The index inputs are in host
// memory on every execution provider, the others are where the provider has them.
struct InferInputs {
  Tensor input;
  Tensor weight;
  Tensor cache;
  std::vector<SlotWrite> plan;

  InferInputs(OrtKernelContext* context, const InferNode& node);
  size_t cache_bytes() const;
};

OrtStatusPtr InferInferShape(const OrtCustomOp*, OrtShapeInferContext* context) noexcept;
size_t InferMayInplace(int** input_index, int** output_index) noexcept;

// What a definition says whatever its execution provider. There is one per provider and element
// type: onnxruntime 1.21 has no type constraint over several inputs.
template <class Op, class Kernel>
class InferDefinition : public Ort::CustomOpBase<Op, Kernel, true> {
 public:
  explicit InferDefinition(cpu::DType dtype) : dtype_(dtype) {
    OrtCustomOp::version = NegotiatedApiVersion();
    // Older ones crash before they call it where an optional input is left out with an empty name.
    constexpr uint32_t kFirstThatInfersOptional = 24;
    if (RuntimeApiVersion() >= kFirstThatInfersOptional) {
      OrtCustomOp::InferOutputShapeFn = InferInferShape;
    }
    OrtCustomOp::GetMayInplace = InferMayInplace;
    OrtCustomOp::ReleaseMayInplace = [](int*, int*) {};
  }

  const char* GetName() const { return spec::nsa_compress_infer::kOp; }
  size_t GetInputTypeCount() const { return 6; }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    if (index == Index::kActualSeqLen) return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    return IsHostInput(index) ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : OnnxType(dtype_);
  }
  OrtMemType GetInputMemoryType(size_t index) const {
    return IsHostInput(index) ? OrtMemTypeCPUInput : OrtMemTypeDefault;
  }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index == Index::kBlockTable ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return OnnxType(dtype_); }

 protected:
  cpu::DType dtype() const { return dtype_; }

 private:
  using Index = InferIndex;
  static bool IsHostInput(size_t index) {
    return index == Index::kSlotMapping || index == Index::kActualSeqLen ||
           index == Index::kBlockTable;
  }

  cpu::DType dtype_;
};

class InferKernel {
 public:
  InferKernel(const OrtKernelInfo* info, cpu::DType dtype) : node_(info), dtype_(dtype) {}
  OrtStatusPtr ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  void Compute(OrtKernelContext* context) const;

  InferNode node_;
  cpu::DType dtype_;
};

class InferOp : public InferDefinition<InferOp, InferKernel> {
 public:
  using InferDefinition::InferDefinition;

  OrtStatusPtr CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info,
                              void** kernel) const noexcept;
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
};

}  // namespace nsa::ort

#endif  // NSA_ONNX_ORT_EXT_NSA_COMPRESS_INFER_H_
