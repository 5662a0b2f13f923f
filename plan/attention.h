// What the attention stages' checks have in common.
#ifndef NSA_ONNX_PLAN_ATTENTION_H_
#define NSA_ONNX_PLAN_ATTENTION_H_
#include <cstdint>
namespace nsa {
// Integers of the caller's memory, which are read through ReadOnce.
struct Integers {
  const int64_t* values;
  int64_t count;
};
}  // namespace nsa
#endif  // NSA_ONNX_PLAN_ATTENTION_H_
