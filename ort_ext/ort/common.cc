// See common.h.
#include "ort/common.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>

namespace nsa::ort {
namespace {

uint32_t runtime_version = 0;

[[noreturn]] void Refuse(const std::string& message) {
  throw Ort::Exception(std::string(message), ORT_INVALID_ARGUMENT);
}

// Bytes of an element, for the types that the operators take.
size_t ItemSize(ONNXTensorElementDataType type) {
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) return sizeof(int64_t);
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32) return sizeof(int32_t);
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL) return sizeof(bool);
  return sizeof(uint16_t);
}

bool IsAligned(const void* data, size_t item_size) {
  return reinterpret_cast<uintptr_t>(data) % item_size == 0;
}

// External data lies at any offset of its file, and onnxruntime maps the file as it is: what is not
// aligned there is copied. (Devices' memory, which we cannot read, is aligned by its allocator.)
Tensor FromValue(const Ort::ConstValue& value, bool copied = false) {
  const Ort::TensorTypeAndShapeInfo info = value.GetTensorTypeAndShapeInfo();
  Tensor tensor{info.GetShape(), value.GetTensorRawData(), nullptr};
  const size_t item_size = ItemSize(info.GetElementType());
  if ((IsAligned(tensor.data, item_size) && !copied) ||
      value.GetTensorMemoryInfo().GetDeviceType() != OrtMemoryInfoDeviceType_CPU) {
    return tensor;
  }
  const size_t bytes = info.GetElementCount() * item_size;
  tensor.copy.reset(new std::byte[bytes]);
  // Without an element, onnxruntime's may be null.
  if (bytes > 0) std::memcpy(tensor.copy.get(), tensor.data, bytes);
  tensor.data = tensor.copy.get();
  return tensor;
}

}  // namespace

uint32_t RuntimeApiVersion() { return runtime_version; }
void SetRuntimeApiVersion(uint32_t version) { runtime_version = version; }

void RequireValid(const std::string& message) {
  if (!message.empty()) Refuse(message);
}

void RequireValidNode(const char* op, const std::string& message) {
  if (!message.empty()) Refuse(op + (": " + message));
}

int64_t IntAttribute(const OrtKernelInfo* info, const char* op, const char* name) {
  int64_t value = 0;
  const Ort::Status status(Ort::GetApi().KernelInfoGetAttribute_int64(info, name, &value));
  if (!status.IsOK()) RequireValidNode(op, name + std::string(" must be an int, got none"));
  return value;
}

float FloatAttribute(const OrtKernelInfo* info, const char* op, const char* name) {
  float value = 0;
  const Ort::Status status(Ort::GetApi().KernelInfoGetAttribute_float(info, name, &value));
  if (!status.IsOK()) RequireValidNode(op, name + std::string(" must be a float, got none"));
  if (!std::isfinite(value)) {
    const char* const got = std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
    RequireValidNode(op, name + std::string(" must be a finite float32, got ") + got);
  }
  return value;
}

ONNXTensorElementDataType OnnxType(DType dtype) {
  return dtype == DType::kFloat16 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
                                  : ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
}

Tensor Input(OrtKernelContext* context, size_t index, bool copied) {
  return FromValue(Ort::KernelContext(context).GetInput(index), copied);
}

std::optional<Tensor> OptionalInput(OrtKernelContext* context, size_t index) {
  const Ort::KernelContext kernel_context(context);
  if (index >= kernel_context.GetInputCount()) return std::nullopt;
  const Ort::ConstValue value = kernel_context.GetInput(index);
  if (!value) return std::nullopt;
  return FromValue(value);
}

void* Output(OrtKernelContext* context, Shape shape, size_t index) {
  Ort::UnownedValue value =
      Ort::KernelContext(context).GetOutput(index, shape.dims, static_cast<size_t>(shape.rank));
  void* data = value.GetTensorMutableRawData();
  const size_t item_size = ItemSize(value.GetTensorTypeAndShapeInfo().GetElementType());
  if (!IsAligned(data, item_size)) {
    const std::string wanted =
        item_size == 2 ? "an even address" : "a multiple of " + std::to_string(item_size);
    Refuse("the output must be bound to " + wanted);
  }
  return data;
}

cpu::Parallel SessionThreads(OrtKernelContext* context) {
  // The pool's size is not to be had; a few parts per core let it balance them. The number of cores
  // comes out of a file, which takes longer than a small run does.
  static const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  constexpr int64_t kBytesWorthHanding = int64_t{1} << 18;  // to threads that wait: 10 us or so
  return {std::min<int64_t>(64, 4 * cores), kBytesWorthHanding,
          [context](int64_t parts, const std::function<void(int64_t)>& body) {
            using Body = std::function<void(int64_t)>;
            const auto call = [](void* data, size_t part) noexcept {
              (*static_cast<const Body*>(data))(static_cast<int64_t>(part));
            };
            Ort::ThrowOnError(Ort::GetApi().KernelContext_ParallelFor(
                context, call, static_cast<size_t>(parts), 0, const_cast<Body*>(&body)));
          }};
}

InferredType InputType(OrtShapeInferContext* context, size_t index, size_t rank) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  Ort::ThrowOnError(Ort::GetApi().ShapeInferContext_GetInputTypeShape(context, index, &raw));
  Ort::TensorTypeAndShapeInfo owner(raw);
  const auto release = [&owner](void*) { owner.release(); };  // onnxruntime keeps it
  const std::unique_ptr<void, decltype(release)> guard(raw, release);
  InferredType result{owner.GetElementType(), owner.GetShape(), {}};
  std::vector<const char*> symbols(rank, nullptr);
  if (result.dims.size() == rank) {
    owner.GetSymbolicDimensions(symbols.data(), rank);
  } else {
    result.dims.assign(rank, -1);
  }
  for (const char* symbol : symbols) result.symbols.emplace_back(symbol ? symbol : "");
  for (size_t axis = 0; axis < rank; ++axis) {
    if (result.dims[axis] < 0 && result.symbols[axis].empty()) SetUnknown(&result, axis);
  }
  return result;
}

void SetUnknown(InferredType* type, size_t axis) {
  // A number, because the node's name is not to be had here. onnxruntime takes dims of one name for
  // equal and lets their tensors share memory.
  static std::atomic<uint64_t> count{0};
  type->dims[axis] = -1;
  type->symbols[axis] = "nsa_onnx_dim_" + std::to_string(count.fetch_add(1));
}

void SetDimFromAttribute(OrtShapeInferContext* context, const char* name, InferredType* type,
                         size_t axis) {
  const OrtApi& api = Ort::GetApi();
  const OrtOpAttr* attribute = nullptr;  // onnxruntime keeps it
  const Ort::Status found(api.ShapeInferContext_GetAttribute(context, name, &attribute));
  int64_t value = -1;
  if (found.IsOK()) {
    size_t size = 0;
    const Ort::Status read(api.ReadOpAttr(attribute, ORT_OP_ATTR_INT, &value, sizeof value, &size));
    if (!read.IsOK()) value = -1;
  }
  if (value < 0) return SetUnknown(type, axis);
  type->dims[axis] = value;
  type->symbols[axis].clear();
}

void SetOutputType(OrtShapeInferContext* context, const InferredType& type, size_t index) {
  const OrtApi& api = Ort::GetApi();
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  Ort::ThrowOnError(api.CreateTensorTypeAndShapeInfo(&raw));
  const Ort::TensorTypeAndShapeInfo info(raw);
  std::vector<const char*> symbols;
  for (const std::string& symbol : type.symbols) symbols.push_back(symbol.c_str());
  Ort::ThrowOnError(api.SetTensorElementType(raw, type.type));
  Ort::ThrowOnError(api.SetDimensions(raw, type.dims.data(), type.dims.size()));
  Ort::ThrowOnError(api.SetSymbolicDimensions(raw, symbols.data(), symbols.size()));
  Ort::ThrowOnError(api.ShapeInferContext_SetOutputTypeShape(context, index, raw));
}

}  // namespace nsa::ort
