// See ops.h.
#include "cann/ops.h"

#include <cstring>
#include <utility>

namespace nsa::cann {
namespace {

using ort::Guarded;

// Stream and memory of one run of a node.
class OrtLaunch : public Launch {
 public:
  OrtLaunch(OrtKernelContext* context, Memory& memory) : memory_(memory) {
    const Ort::KernelContext kernel_context(context);
    device_ = kernel_context.GetInput(0).GetTensorMemoryInfo().GetDeviceId();
    stream_ = kernel_context.GetGPUComputeStream();
  }
  OrtLaunch(const OrtLaunch&) = delete;
  OrtLaunch& operator=(const OrtLaunch&) = delete;

  // The device need not have got to the work yet: what it uses is marked.
  ~OrtLaunch() override {
    for (auto& block : blocks_) memory_.Return(std::move(block));
  }

  Stream stream() const override { return stream_; }

  void* Scratch(size_t bytes) override { return Borrow(Place::kDevice, bytes); }

  void* Upload(const void* data, size_t bytes) override {
    void* staging = Borrow(Place::kPinned, bytes);
    std::memcpy(staging, data, bytes);
    void* device = Scratch(bytes);
    Require(GetRuntime().aclrtMemcpyAsync(device, bytes, staging, bytes, kAclHostToDevice, stream_),
            "aclrtMemcpyAsync");
    return device;
  }

  // Runs what launches. If it fails, some of the work may be on the stream already: that is waited
  // for, and `consequence` says what it may have done.
  template <class Body, class Consequence>
  void Run(const std::string& node, Body body, Consequence consequence) {
    try {
      body();
      MarkBlocks();
    } catch (const CannError& error) {
      const std::string message = node + ": " + error.what() + consequence();
      Forget(GetRuntime().aclrtSynchronizeStream(stream_));
      throw Ort::Exception(std::string(message), ORT_EP_FAIL);
    } catch (...) {
      Forget(GetRuntime().aclrtSynchronizeStream(stream_));
      throw;
    }
  }

 private:
  void* Borrow(Place place, size_t bytes) {
    blocks_.reserve(blocks_.size() + 1);
    blocks_.push_back(memory_.Borrow(place, device_, bytes, stream_));
    blocks_.back()->stream = stream_;
    blocks_.back()->mark = nullptr;
    return blocks_.back()->address;
  }

  void MarkBlocks() {
    if (blocks_.empty()) return;
    const auto mark = std::make_shared<const Mark>(stream_);
    for (auto& block : blocks_) block->mark = mark;
  }

  Memory& memory_;
  int device_;
  Stream stream_;
  std::vector<std::unique_ptr<Memory::Block>> blocks_;
};

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
      description_(Describe(info, spec::nsa_compress::kOp)),
      backend_(BackendFor(description_, choice)),
      memory_(Memory::Shared()) {}

OrtStatusPtr CompressKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return Guarded([&] { Compute(context); });
}

void CompressKernel::Compute(OrtKernelContext* context) const {
  const ort::CompressInputs inputs(context, node_, /*hands_on_lengths=*/true);
  const std::array<int64_t, 3> dims = inputs.output_dims();
  void* output = ort::Output(context, {dims.data(), 3});
  if (dims[0] == 0 || dims[2] == 0) return;  // D may be 0
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
  OrtLaunch launch(context, *memory_);
  launch.Run(description_, [&] { backend_.Compress(run, launch); }, [] { return ""; });
}

InferKernel::InferKernel(const OrtKernelInfo* info, cpu::DType dtype, BackendChoice choice)
    : node_(info),
      dtype_(dtype),
      description_(Describe(info, spec::nsa_compress_infer::kOp)),
      backend_(BackendFor(description_, choice)),
      memory_(Memory::Shared()) {
  try {
    backend_.RequireInferBlock(node_.block);
  } catch (const CannError& error) {
    throw Ort::Exception(description_ + ": " + error.what(), ORT_EP_FAIL);
  }
}

OrtStatusPtr InferKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return Guarded([&] { Compute(context); });
}

void InferKernel::Compute(OrtKernelContext* context) const {
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
  OrtLaunch launch(context, *memory_);
  launch.Run(
      description_,
      [&] {
        if (!in_place) {
          Require(GetRuntime().aclrtMemcpyAsync(output, bytes, inputs.cache.data, bytes,
                                                kAclDeviceToDevice, launch.stream()),
                  "aclrtMemcpyAsync");
        }
        if (!inputs.plan.empty()) backend_.Infer(run, launch);
      },
      [&] {
        const bool changed = in_place && run.cache_touched;
        return changed ? "; the slots of cache that this step writes may have changed" : "";
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
