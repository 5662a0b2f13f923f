// What every operator needs of onnxruntime's C++ API: guarded callbacks, attributes, tensors,
// threads.
#ifndef NSA_ONNX_ORT_EXT_ORT_COMMON_H_
#define NSA_ONNX_ORT_EXT_ORT_COMMON_H_

// onnxruntime hands its API over in RegisterCustomOps; nothing may ask for it before.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/parallel.h"
#include "plan/caller.h"
#include "plan/dtype.h"

namespace nsa::ort {

// The newest version of onnxruntime's API that the runtime has: N of its version 1.N. Set once, by
// RegisterCustomOps.
uint32_t RuntimeApiVersion();
void SetRuntimeApiVersion(uint32_t version);

// The version that this library speaks with it.
constexpr uint32_t kApiVersion = 21;
// With older ones it would call functions that are not there. (Tested are 21 and up.)
constexpr uint32_t kOldestApiVersion = 17;
inline uint32_t NegotiatedApiVersion() { return std::min(kApiVersion, RuntimeApiVersion()); }

// Runs a callback's body: nothing but an OrtStatus leaves, whatever it throws.
template <class Body>
OrtStatusPtr Guarded(Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Ort::Exception& e) {
    return Ort::GetApi().CreateStatus(e.GetOrtErrorCode(), e.what());
  } catch (const std::bad_alloc&) {
    return Ort::GetApi().CreateStatus(ORT_FAIL, "not enough memory for this run");
  } catch (const std::exception& e) {
    return Ort::GetApi().CreateStatus(ORT_FAIL, e.what());
  } catch (...) {
    return Ort::GetApi().CreateStatus(ORT_FAIL, "unknown error");
  }
}

// Throws INVALID_ARGUMENT unless `message` is empty.
void RequireValid(const std::string& message);

// The same for what is wrong with a node itself: onnxruntime does not say which one it was loading.
void RequireValidNode(const char* op, const std::string& message);

// An int attribute of the node; INVALID_ARGUMENT if it is missing or of another type.
int64_t IntAttribute(const OrtKernelInfo* info, const char* op, const char* name);

// The same for a float attribute, which must be finite as well.
float FloatAttribute(const OrtKernelInfo* info, const char* op, const char* name);

ONNXTensorElementDataType OnnxType(DType dtype);

// An input tensor of a node that is running.
struct Tensor {
  std::vector<int64_t> dims;
  const void* data;
  std::unique_ptr<std::byte[]> copy;  // holds the data where onnxruntime's cannot be used

  Shape shape() const { return {dims.data(), static_cast<int64_t>(dims.size())}; }
  template <class T>
  const T* as() const {
    static_assert(!std::is_same_v<T, bool>,
                  "a bool tensor holds any byte: read uint8_t, test != 0");
    return static_cast<const T*>(data);
  }
};

// `copied`: for values in host memory that are read more than once, so that no other thread changes
// them meanwhile.
Tensor Input(OrtKernelContext* context, size_t index, bool copied = false);

// The same for an optional input: nothing if the node has fewer inputs or an empty name there.
std::optional<Tensor> OptionalInput(OrtKernelContext* context, size_t index);

// An output of the node, allocated with this shape.
void* Output(OrtKernelContext* context, Shape shape, size_t index = 0);

// The thread pool of the session that runs the node.
cpu::Parallel SessionThreads(OrtKernelContext* context);

// In a shape inference callback: type and dims of an input; a dim that is not known is -1 and has a
// name. All are unknown where the rank is not `rank`.
struct InferredType {
  ONNXTensorElementDataType type;
  std::vector<int64_t> dims;
  std::vector<std::string> symbols;  // "" where the dim is known

  // Makes dim `axis` what dim `from_axis` of another type is.
  void TakeDim(size_t axis, const InferredType& from, size_t from_axis) {
    dims[axis] = from.dims[from_axis];
    symbols[axis] = from.symbols[from_axis];
  }
};

InferredType InputType(OrtShapeInferContext* context, size_t index, size_t rank);
// Makes `axis` a dim of its own, unlike any other.
void SetUnknown(InferredType* type, size_t axis);
// Makes `axis` what an int attribute says; a dim of its own if the attribute is missing or
// negative.
void SetDimFromAttribute(OrtShapeInferContext* context, const char* name, InferredType* type,
                         size_t axis);
void SetOutputType(OrtShapeInferContext* context, const InferredType& type, size_t index = 0);

}  // namespace nsa::ort

#endif  // NSA_ONNX_ORT_EXT_ORT_COMMON_H_
