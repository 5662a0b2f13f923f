// What a caller hands over: shapes, and memory that it may change at any time.
#ifndef NSA_ONNX_PLAN_CALLER_H_
#define NSA_ONNX_PLAN_CALLER_H_

#include <cstdint>

namespace nsa {

struct Shape {
  const int64_t* dims;
  int64_t rank;

  int64_t operator[](int64_t axis) const { return dims[axis]; }
};

// A value of the caller's memory, which another thread may be writing: what is checked is what is
// used. Every index is read through this, and once.
template <class T>
T ReadOnce(const T* values, int64_t index) {
  return __atomic_load_n(values + index, __ATOMIC_RELAXED);
}

}  // namespace nsa

#endif  // NSA_ONNX_PLAN_CALLER_H_
