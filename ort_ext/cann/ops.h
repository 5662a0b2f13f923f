// Both ops for onnxruntime's CANN execution provider.
#ifndef NSA_ONNX_ORT_EXT_CANN_OPS_H_
#define NSA_ONNX_ORT_EXT_CANN_OPS_H_

#include "cann/backend.h"
#include "cann/memory.h"
#include "nsa_compress.h"
#include "nsa_compress_infer.h"

namespace nsa::cann {

class CompressKernel {
 public:
  CompressKernel(const OrtKernelInfo* info, cpu::DType dtype, BackendChoice choice);
  OrtStatusPtr ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  void Compute(OrtKernelContext* context) const;

  ort::CompressNode node_;
  cpu::DType dtype_;
  std::string description_;
  const Backend& backend_;
  std::shared_ptr<Memory> memory_;
};

class InferKernel {
 public:
  InferKernel(const OrtKernelInfo* info, cpu::DType dtype, BackendChoice choice);
  OrtStatusPtr ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  void Compute(OrtKernelContext* context) const;

  ort::InferNode node_;
  cpu::DType dtype_;
  std::string description_;
  const Backend& backend_;
  std::shared_ptr<Memory> memory_;
};

class CompressOp : public ort::CompressDefinition<CompressOp, CompressKernel> {
 public:
  CompressOp(cpu::DType dtype, BackendChoice choice);

  OrtStatusPtr CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info,
                              void** kernel) const noexcept;
  const char* GetExecutionProviderType() const { return "CANNExecutionProvider"; }

 private:
  BackendChoice choice_;
};

class InferOp : public ort::InferDefinition<InferOp, InferKernel> {
 public:
  InferOp(cpu::DType dtype, BackendChoice choice);

  OrtStatusPtr CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info,
                              void** kernel) const noexcept;
  const char* GetExecutionProviderType() const { return "CANNExecutionProvider"; }

 private:
  BackendChoice choice_;
};

}  // namespace nsa::cann

#endif  // NSA_ONNX_ORT_EXT_CANN_OPS_H_
