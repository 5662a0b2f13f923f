// See ops.h.
#include "cann/ops.h"

#include <utility>

namespace nsa::cann {
namespace {

using ort::Guarded;

// Memory and stream of one run of a node. Everything is given back when the run ends, though the
// device may not have got there yet: onnxruntime's arena gives it to the same stream again, and to
// another one only after the two have been synchronized.
class OrtLaunch : public Launch {
 public:
  // Device memory is taken from where the node's first input lies.
  OrtLaunch(OrtKernelContext* context, Staging* staging)
      : context_(context),
        memory_(Ort::KernelContext(context).GetInput(0).GetTensorMemoryInfo()),
        staging_(staging),
        stream_(Ort::KernelContext(context).GetGPUComputeStream()) {}
  OrtLaunch(const OrtLaunch&) = delete;
  OrtLaunch& operator=(const OrtLaunch&) = delete;

  ~OrtLaunch() override {
    if (scratch_.empty()) return;
    // Not the scratch buffer alone: onnxruntime would keep it until the session ends.
    OrtAllocator* allocator = nullptr;
    const Ort::Status status(
        Ort::GetApi().KernelContext_GetAllocator(context_, memory_, &allocator));
    if (!status.IsOK()) return;
    for (void* memory : scratch_) allocator->Free(allocator, memory);
    Ort::GetApi().ReleaseAllocator(allocator);
  }

  Stream stream() const override { return stream_; }

  void* Scratch(size_t bytes) override {
    scratch_.reserve(scratch_.size() + 1);
    void* memory = nullptr;
    Ort::ThrowOnError(
        Ort::GetApi().KernelContext_GetScratchBuffer(context_, memory_, bytes, &memory));
    scratch_.push_back(memory);
    return memory;
  }

  void* Upload(const void* data, size_t bytes) override {
    void* memory = Scratch(bytes);
    staging_->Upload(memory, data, bytes, stream_);
    return memory;
  }

 private:
  OrtKernelContext* context_;
  const OrtMemoryInfo* memory_;
  Staging* staging_;
  Stream stream_;
  std::vector<void*> scratch_;
};

// Runs what launches. If it fails, some work may be on the stream already: its memory is given back
// only after that is done.
template <class Body>
void Launching(const std::string& node, const OrtLaunch& launch, Body body) {
  try {
    body();
  } catch (const CannError& error) {
    const std::string message = node + ": " + error.what();
    Forget(GetRuntime().aclrtSynchronizeStream(launch.stream()));
    throw Ort::Exception(std::string(message), ORT_EP_FAIL);
  } catch (...) {
    Forget(GetRuntime().aclrtSynchronizeStream(launch.stream()));
    throw;
  }
}

// "NsaCompress 'name'", for messages.
std::string Describe(const OrtKernelInfo* info, const char* op) {
  size_t size = 0;
  Ort::ThrowOnError(Ort::GetApi().KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, '\0');
  Ort::ThrowOnError(Ort::GetApi().KernelInfo_GetNodeName(info, name.data(), &size));
  while (!name.empty() && name.back() == '\0') name.pop_back();
  return std::string(op) + " '" + name + "'";
}

const Backend& BackendFor(const std::string& node, BackendChoice choice) {
  try {
    return GetBackend(choice);
  } catch (const CannError& error) {
    throw Ort::Exception(node + ": " + error.what(), ORT_EP_FAIL);
  }
}

}  // namespace

CompressKernel::CompressKernel(const OrtKernelInfo* info, cpu::DType dtype, BackendChoice choice)
    : node_(info),
      dtype_(dtype),
      description_(Describe(info, spec::kCompressOp)),
      backend_(BackendFor(description_, choice)) {}

OrtStatusPtr CompressKernel::ComputeV2(OrtKernelContext* context) noexcept {
  return Guarded([&] { Compute(context); });
}

void CompressKernel::Compute(OrtKernelContext* context) {
  const ort::CompressInputs inputs(context, node_);
  const std::array<int64_t, 3> dims = inputs.output_dims();
  void* output = ort::Output(context, {dims.data(), 3});
  if (dims[0] == 0) return;
  const CompressRun run{dtype_,
                        inputs.input.data,
                        inputs.weight.data,
                        output,
                        inputs.input.dims[0],
                        dims[1],
                        dims[2],
                        dims[0],
                        node_.block,
                        node_.stride,
                        inputs.actual_seq_len.as<int64_t>(),
                        inputs.actual_seq_len.dims[0],
                        &inputs.plan};
  OrtLaunch launch(context, &staging_);
  Launching(description_, launch, [&] { backend_.Compress(run, launch); });
}

InferKernel::InferKernel(const OrtKernelInfo* info, cpu::DType dtype, BackendChoice choice)
    : node_(info),
      dtype_(dtype),
      description_(Describe(info, spec::kInferOp)),
      backend_(BackendFor(description_, choice)) {
  try {
    backend_.RequireInferBlock(node_.block);
  } catch (const CannError& error) {
    throw Ort::Exception(description_ + ": " + error.what(), ORT_EP_FAIL);
  }
}

OrtStatusPtr InferKernel::ComputeV2(OrtKernelContext* context) noexcept {
  return Guarded([&] { Compute(context); });
}

void InferKernel::Compute(OrtKernelContext* context) {
  const ort::InferInputs inputs(context, node_);
  void* output = ort::Output(context, inputs.cache.shape());
  const size_t bytes = inputs.cache_bytes();
  if (bytes == 0) return;
  const InferRun run{dtype_,
                     inputs.input.data,
                     inputs.weight.data,
                     output,
                     inputs.input.dims[0],
                     node_.page,
                     inputs.input.dims[2],
                     inputs.input.dims[3],
                     inputs.cache.dims[0],
                     node_.block,
                     &inputs.plan};
  const bool in_place = output == inputs.cache.data;
  OrtLaunch launch(context, &staging_);
  Launching(description_, launch, [&] {
    if (!in_place) {
      Require(GetRuntime().aclrtMemcpyAsync(output, bytes, inputs.cache.data, bytes,
                                            kAclDeviceToDevice, launch.stream()),
              "aclrtMemcpyAsync");
    }
    if (inputs.plan.empty()) return;
    try {
      backend_.Infer(run, launch);
    } catch (const CannError& error) {
      if (!in_place || !run.cache_touched) throw;
      throw CannError(std::string(error.what()) +
                      "; slots of cache that this step writes may have changed");
    }
  });
}

CompressOp::CompressOp(cpu::DType dtype, BackendChoice choice)
    : CompressDefinition(dtype), choice_(choice) {}

OrtStatusPtr CompressOp::CreateKernelV2(const OrtApi&, const OrtKernelInfo* info,
                                        void** kernel) const noexcept {
  return Guarded([&] { *kernel = new CompressKernel(info, dtype(), choice_); });
}

InferOp::InferOp(cpu::DType dtype, BackendChoice choice)
    : InferDefinition(dtype), choice_(choice) {}

OrtStatusPtr InferOp::CreateKernelV2(const OrtApi&, const OrtKernelInfo* info,
                                     void** kernel) const noexcept {
  return Guarded([&] { *kernel = new InferKernel(info, dtype(), choice_); });
}

}  // namespace nsa::cann
