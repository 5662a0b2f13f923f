// The product of two float32 matrices, for the CPU kernels of the attention stages. Compiled once
// per instruction set, in each source that includes it.
//
//   Multiply<Float32>(product)        c = factor * (c + a x b), or factor * (a x b) if it begins
//   Multiply<T>(product)              the same, b of 16-bit elements: SimdFloat16 or SimdBFloat16
//
// A step keeps some rows of some neighbouring vectors of c in registers and goes down all of `a`'s
// columns, so that each element of c is one chain of multiply-adds, k = 0, 1, 2, ...: its bits
// depend on neither the tiles nor the order in which steps take them. A product that is computed in
// pieces along k, one after the other with factor 1, has the same bits as the whole.
#if defined(NSA_ONNX_ORT_EXT_CPU_MULTIPLY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NSA_ONNX_ORT_EXT_CPU_MULTIPLY_INL_H_
#undef NSA_ONNX_ORT_EXT_CPU_MULTIPLY_INL_H_
#else
#define NSA_ONNX_ORT_EXT_CPU_MULTIPLY_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>

#include "cpu/tokens.h"
#include "cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nsa::cpu::HWY_NAMESPACE {

// How the elements of b are loaded: T of vectors-inl.h has the same.
struct Float32 {
  static HWY_INLINE VF Load(const float* from) { return hn::LoadU(DF(), from); }
};

template <class Element>
struct Product {
  const float* a;  // element [r, k] is a[r * a_row + k * a_step]
  size_t a_row;
  size_t a_step;
  const Element* b;  // row k is b[k * b_row ...]
  size_t b_row;
  float* c;  // row r is c[r * c_row ...]
  size_t c_row;
  size_t rows;     // a multiple of 8
  size_t columns;  // a multiple of 16
  size_t steps;    // how many k there are
  float factor;
  bool begins;       // what c holds does not matter
  Fetcher* fetcher;  // of what comes next: called every kFetchSteps steps; null for none
};

// Rows and vectors of c that a step takes. Where there are 32 registers, 24 sums: a multiply-add
// begins twice a cycle and takes four, so that eight would do, but each vector of b serves all rows
// and each element of a all vectors, and what is loaded per multiply-add falls with both. Where
// there are 16, 12 sums, three vectors of b and an element of a fill them.
constexpr size_t kStepRows = kSums >= 16 ? 8 : 4;
constexpr size_t kStepVectors = 3;
constexpr size_t kFetchSteps = 32;

// How often a product of this size calls its fetcher.
HWY_INLINE size_t FetchCalls(size_t rows, size_t columns, size_t steps) {
  const size_t vectors = columns / hn::Lanes(DF());
  return rows / kStepRows * ((vectors + kStepVectors - 1) / kStepVectors) *
         ((steps + kFetchSteps - 1) / kFetchSteps);
}

// SVE's vectors cannot be elements of an array: 24 names stand for one.
#define NSA_EACH_OF_STEP(M) \
  M(0)                      \
  M(1)                      \
  M(2)                      \
  M(3)                      \
  M(4)                      \
  M(5)                      \
  M(6)                      \
  M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15) M(16) M(17) M(18) M(19) M(20) M(21) M(22) M(23)

// Sum i is of row i / kVectors and vector i % kVectors.
template <class T, size_t kVectors, class Element>
HWY_INLINE void MultiplyStep(const Product<Element>& p, const float* a, const Element* b,
                             float* c) {
  constexpr size_t kCount = kStepRows * kVectors;
  static_assert(kCount <= 24 && kVectors <= 3);
  const DF df;
  const size_t lanes = hn::Lanes(df), a_row = p.a_row, a_step = p.a_step, b_row = p.b_row;
#define NSA_LOAD(i)                                                            \
  VF s##i = hn::Zero(df);                                                      \
  if constexpr (i < kCount) {                                                  \
    if (!p.begins) {                                                           \
      s##i = hn::LoadU(df, c + i / kVectors * p.c_row + i % kVectors * lanes); \
    }                                                                          \
  }
  NSA_EACH_OF_STEP(NSA_LOAD)
#undef NSA_LOAD
  const size_t steps = p.steps;
  Fetcher* const fetcher = p.fetcher;
  for (size_t k = 0; k < steps;) {
    if (fetcher != nullptr) fetcher->Fetch();
    for (const size_t stop = std::min(k + kFetchSteps, steps); k < stop; ++k) {
      const VF b0 = T::Load(b);
      const VF b1 = kVectors > 1 ? T::Load(b + lanes) : b0;
      const VF b2 = kVectors > 2 ? T::Load(b + 2 * lanes) : b0;
#define NSA_ADD(i)                                                           \
  if constexpr (i < kCount) {                                                \
    const VF& column = i % kVectors == 0 ? b0 : i % kVectors == 1 ? b1 : b2; \
    s##i = hn::MulAdd(hn::Set(df, a[i / kVectors * a_row]), column, s##i);   \
  }
      NSA_EACH_OF_STEP(NSA_ADD)
#undef NSA_ADD
      a += a_step;
      b += b_row;
    }
  }
  const VF factor = hn::Set(df, p.factor);
#define NSA_STORE(i)                                                                          \
  if constexpr (i < kCount) {                                                                 \
    hn::StoreU(hn::Mul(s##i, factor), df, c + i / kVectors * p.c_row + i % kVectors * lanes); \
  }
  NSA_EACH_OF_STEP(NSA_STORE)
#undef NSA_STORE
}
#undef NSA_EACH_OF_STEP

// kVectors vectors of all rows.
template <class T, size_t kVectors, class Element>
void MultiplyColumns(const Product<Element>& p, size_t column) {
  for (size_t r = 0; r < p.rows; r += kStepRows) {
    MultiplyStep<T, kVectors>(p, p.a + r * p.a_row, p.b + column, p.c + r * p.c_row + column);
  }
}

template <class T, class Element>
void Multiply(const Product<Element>& p) {
  const size_t lanes = hn::Lanes(DF());
  size_t left = p.columns / lanes;
  for (size_t column = 0; left > 0;) {
    // Four are two and two: a single vector would load more than it computes.
    const size_t vectors = left == 4 ? 2 : std::min(left, kStepVectors);
    if (vectors == 3) {
      MultiplyColumns<T, 3>(p, column);
    } else if (vectors == 2) {
      MultiplyColumns<T, 2>(p, column);
    } else {
      MultiplyColumns<T, 1>(p, column);
    }
    column += vectors * lanes;
    left -= vectors;
  }
}

}  // namespace nsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // the toggle
