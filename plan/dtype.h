// The element types of the operators' data.
#ifndef NSA_ONNX_PLAN_DTYPE_H_
#define NSA_ONNX_PLAN_DTYPE_H_

namespace nsa {

enum class DType { kFloat16 = 0, kBFloat16 = 1 };
constexpr DType kDTypes[] = {DType::kFloat16, DType::kBFloat16};

}  // namespace nsa

#endif  // NSA_ONNX_PLAN_DTYPE_H_
