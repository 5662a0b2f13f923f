// An operator as onnxruntime sees it, made of what the operator says of itself (operators/*/op.h).
#ifndef NSA_ONNX_ORT_EXT_ORT_CUSTOM_OP_H_
#define NSA_ONNX_ORT_EXT_ORT_CUSTOM_OP_H_

#include <functional>
#include <iterator>
#include <utility>

#include "ort/common.h"

namespace nsa::ort {

// kOwn: the operator's type T, float16 or bfloat16.
enum class Element { kOwn, kBool, kInt32, kInt64 };

struct Port {
  Element element;
  bool in_host_memory = false;  // on every execution provider
  bool optional = false;
};

// One definition per execution provider and element type: onnxruntime 1.21 has no type constraint
// over several inputs. `NodeKernel` is a node as it runs; its ComputeV2 throws nothing. `Operator`
// has kName, kInputs, kOutputs, kUpdated (the input whose memory the first output may take over, or
// -1) and InferShape.
template <class Operator, class NodeKernel>
class CustomOp : public Ort::CustomOpBase<CustomOp<Operator, NodeKernel>, NodeKernel, true> {
 public:
  using Make = std::function<NodeKernel*(const OrtKernelInfo*)>;

  CustomOp(const char* provider, DType dtype, Make make)
      : provider_(provider), dtype_(dtype), make_(std::move(make)) {
    OrtCustomOp::version = NegotiatedApiVersion();
    // Older ones crash before they call it where an optional input is left out with an empty name.
    constexpr uint32_t kFirstThatInfersOptional = 24;
    if (!HasOptionalInput() || RuntimeApiVersion() >= kFirstThatInfersOptional) {
      OrtCustomOp::InferOutputShapeFn = InferShape;
    }
    if constexpr (Operator::kUpdated >= 0) {
      OrtCustomOp::GetMayInplace = MayInplace;
      OrtCustomOp::ReleaseMayInplace = [](int*, int*) {};
    }
  }

  const char* GetName() const { return Operator::kName; }
  const char* GetExecutionProviderType() const { return provider_; }
  size_t GetInputTypeCount() const { return std::size(Operator::kInputs); }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    return TypeOf(Operator::kInputs[index]);
  }
  OrtMemType GetInputMemoryType(size_t index) const {
    return Operator::kInputs[index].in_host_memory ? OrtMemTypeCPUInput : OrtMemTypeDefault;
  }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return Operator::kInputs[index].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  size_t GetOutputTypeCount() const { return std::size(Operator::kOutputs); }
  ONNXTensorElementDataType GetOutputType(size_t index) const {
    return TypeOf(Operator::kOutputs[index]);
  }
  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info,
                              void** kernel) const noexcept {
    return Guarded([&] { *kernel = make_(info); });
  }

 private:
  ONNXTensorElementDataType TypeOf(const Port& port) const {
    if (port.element == Element::kBool) return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    if (port.element == Element::kInt32) return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    if (port.element == Element::kInt64) return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    return OnnxType(dtype_);
  }

  static bool HasOptionalInput() {
    const auto optional = [](const Port& port) { return port.optional; };
    return std::any_of(std::begin(Operator::kInputs), std::end(Operator::kInputs), optional);
  }

  static OrtStatusPtr InferShape(const OrtCustomOp*, OrtShapeInferContext* context) noexcept {
    return Guarded([&] { Operator::InferShape(context); });
  }

  // Where nothing else reads the input. (An alias map would share it with other readers, too, who
  // then see the new values.)
  static size_t MayInplace(int** input_index, int** output_index) noexcept {
    static int from[] = {Operator::kUpdated};
    static int to[] = {0};
    *input_index = from;
    *output_index = to;
    return 1;
  }

  const char* provider_;
  DType dtype_;
  Make make_;
};

}  // namespace nsa::ort

#endif  // NSA_ONNX_ORT_EXT_ORT_CUSTOM_OP_H_
