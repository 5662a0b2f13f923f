// NsaCompressInfer(input, weight, slot_mapping, cache, actual_seq_len, block_table?) -> cache_out
// for onnxruntime.
#ifndef NSA_ONNX_ORT_EXT_NSA_COMPRESS_INFER_H_
#define NSA_ONNX_ORT_EXT_NSA_COMPRESS_INFER_H_

#include "ort_common.h"

namespace nsa::ort {

class InferKernel {
 public:
  InferKernel(const OrtKernelInfo* info, cpu::DType dtype);
  OrtStatusPtr ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  void Compute(OrtKernelContext* context) const;

  int64_t block_;
  int64_t stride_;
  int64_t page_;
  cpu::DType dtype_;
};

// One definition per element type: onnxruntime 1.21 has no type constraint over several inputs.
class InferOp : public Ort::CustomOpBase<InferOp, InferKernel, true> {
 public:
  explicit InferOp(cpu::DType dtype);

  OrtStatusPtr CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info,
                              void** kernel) const noexcept;
  const char* GetName() const { return spec::kInferOp; }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  size_t GetInputTypeCount() const { return 6; }
  ONNXTensorElementDataType GetInputType(size_t index) const;
  OrtMemType GetInputMemoryType(size_t index) const;
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const;
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return OnnxType(dtype_); }

 private:
  cpu::DType dtype_;
};

}  // namespace nsa::ort

#endif  // NSA_ONNX_ORT_EXT_NSA_COMPRESS_INFER_H_
