// NsaCompress(input, weight, actual_seq_len) -> output for onnxruntime.
#ifndef NSA_ONNX_ORT_EXT_NSA_COMPRESS_H_
#define NSA_ONNX_ORT_EXT_NSA_COMPRESS_H_

#include "ort_common.h"

namespace nsa::ort {

class CompressKernel {
 public:
  CompressKernel(const OrtKernelInfo* info, cpu::DType dtype);
  OrtStatusPtr ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  void Compute(OrtKernelContext* context) const;

  int64_t block_;
  int64_t stride_;
  cpu::DType dtype_;
};

// One definition per element type: onnxruntime 1.21 has no type constraint over several inputs.
class CompressOp : public Ort::CustomOpBase<CompressOp, CompressKernel, true> {
 public:
  explicit CompressOp(cpu::DType dtype);

  OrtStatusPtr CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info,
                              void** kernel) const noexcept;
  const char* GetName() const { return spec::kCompressOp; }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  size_t GetInputTypeCount() const { return 3; }
  ONNXTensorElementDataType GetInputType(size_t index) const;
  OrtMemType GetInputMemoryType(size_t index) const;
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return OnnxType(dtype_); }

 private:
  cpu::DType dtype_;
};

}  // namespace nsa::ort

#endif  // NSA_ONNX_ORT_EXT_NSA_COMPRESS_H_
