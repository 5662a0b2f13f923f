// What the test of the CPU kernels does for every operator: run a case on all instruction sets and
// in all splits, compare the bits, watch the memory around. Where an operator promises the same
// bits in all splits, but only nearly the same on two instruction sets, its cases go through
// CompareNear. operators/*.cc has each operator's cases, same_bits.cc says what the test promises.
#ifndef NSA_ONNX_TESTS_CPU_TESTER_H_
#define NSA_ONNX_TESTS_CPU_TESTER_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "c_api/c_api.h"
#include "cpu/float16.h"
#include "cpu/targets.h"
#include "float_mode.h"
#include "guarded.h"
#include "plan/dtype.h"
#include "values.h"

namespace nsa::cpu {

class Tester;

// The cases of an operator.
struct OperatorTest {
  const char* name;
  // Of the results of all cases of `run`. A change of the cases changes it; a change of a kernel
  // must not.
  uint64_t digest;
  void (*run)(Tester* tester);
  // Cases that depend on the size of this machine's memory pages and have no part in the digest.
  void (*run_paged)(Tester* tester);
  // Through the C interface, which starts threads of its own.
  void (*run_threads)(DType dtype, const std::vector<std::string>& targets);
};

// All operators' tests: each adds its own, as a global object of its source is made.
std::vector<OperatorTest>& OperatorTests();
struct Register {
  explicit Register(const OperatorTest& test) { OperatorTests().push_back(test); }
};

constexpr const char* kDTypeNames[] = {"float16", "bfloat16"};

// Multiplications and additions of a case at most: what an emulated machine has time for.
constexpr int64_t kWork = 300'000;

// --------------------------------------------------------------------------------------------------
// What is being done, for messages; failures.

void Doing(const std::string& what, const std::string& how);
void Fail(const std::string& what);

template <class... Arguments>
std::string Text(const char* format, Arguments... arguments) {
  char text[512];
  std::snprintf(text, sizeof text, format, arguments...);
  return text;
}

std::string Joined(const std::vector<int64_t>& numbers);

// --------------------------------------------------------------------------------------------------
// The floating point mode of the host's thread.

// Calls `kernel` in the `index`th mode, which it must leave as it was.
template <class Call>
void InMode(size_t index, Call kernel) {
  SetMode(kModes[index % 2]);
  const Mode mode = GetMode();  // without the bits that this processor does not have
  kernel();
  const Mode left = GetMode();
  SetMode(kModes[0]);
  if (left != mode) Fail("the thread's floating point mode was changed");
}

// --------------------------------------------------------------------------------------------------
// One call of an operator: its data, and the ways to run its kernel.

using Array = Guarded<uint16_t>;
using Scratch = Guarded<float>;

// first .. last - 1, with scratch memory of exactly the size that was asked for.
template <class Data, class Kernel>
void RunRange(const Data& data, Kernel kernel, int64_t first, int64_t last, Place place,
              size_t mode) {
  Scratch scratch(ScratchSize(data), place);
  InMode(mode, [&] { kernel(data, first, last, scratch.data()); });
  if (!scratch.SurroundingsUntouched()) Fail("wrote outside of scratch");
}

// The borders of a random split of 0 .. units, empty parts included.
inline std::vector<int64_t> RandomSplit(int64_t units, Random* random) {
  std::vector<int64_t> borders{0, units};
  for (int64_t i = random->Between(1, 4); i > 0; --i) borders.push_back(random->Between(0, units));
  std::sort(borders.begin(), borders.end());
  return borders;
}

template <class T>
void Shuffle(std::vector<T>* values, Random* random) {
  for (size_t i = values->size(); i > 1; --i) {
    std::swap((*values)[i - 1],
              (*values)[static_cast<size_t>(random->Between(0, static_cast<int64_t>(i) - 1))]);
  }
}

// What all cases share.
struct Case {
  DType dtype;
  Values values;
  int64_t block, stride, heads, dim;
  uint64_t seed;

  std::string Describe(const char* op, const std::string& rest) const {
    return Text("%s %s block %d stride %d N %d D %d %s, %s, seed %d", op,
                kDTypeNames[static_cast<int>(dtype)], static_cast<int>(block),
                static_cast<int>(stride), static_cast<int>(heads), static_cast<int>(dim),
                rest.c_str(), kValueNames[static_cast<int>(values)], static_cast<int>(seed));
  }
};

inline float ToFloat(uint16_t bits, DType dtype) {
  return dtype == DType::kFloat16 ? Float16::ToFloat(bits) : BFloat16::ToFloat(bits);
}

class Tester {
 public:
  explicit Tester(std::vector<std::string> targets) : targets_(std::move(targets)) {}

  uint64_t digest() const { return digest_; }
  int cases() const { return cases_; }

  // All ways to compute `units` units into `result`, from whose contents `before` the computation
  // starts. `kernel()` is the operator's on the target in use.
  template <class Data, class Kernel>
  void Compare(const std::string& what, Data data, uint16_t* Data::* result, Array* array,
               int64_t units, const std::vector<uint16_t>& before, Kernel kernel, Random* random) {
    const size_t bytes = before.size() * sizeof(uint16_t);
    ++cases_;
    data.*result = array->data();
    std::memcpy(array->data(), before.data(), bytes);
    Doing(what, "scalar, whole");
    SetTarget("scalar");
    RunRange(data, kernel(), 0, units, Place::kAgainstEnd, 0);
    const std::vector<uint16_t> expected(array->data(), array->data() + before.size());
    for (const uint16_t bits : expected) digest_ = (digest_ ^ bits) * 0x100000001B3u;

    for (const std::string& target : targets_) {
      const std::string error = SetTarget(target.c_str());
      if (!error.empty()) Fail(error);
      const auto run = kernel();
      for (const bool split : {false, true}) {
        std::memcpy(array->data(), before.data(), bytes);
        const std::vector<int64_t> borders =
            split ? RandomSplit(units, random) : std::vector<int64_t>{0, units};
        Doing(what, target + ", ranges between " + Joined(borders));
        RunParts(data, run, borders, random);
        ExpectSame(expected, *array, data.heads, data.dim);
        if (!array->SurroundingsUntouched()) Fail("wrote outside of the result");
      }
    }
  }

  // The same for an operator whose targets agree within an error: each target's result is the same
  // in all splits, and differs from the scalar one by a rounding and `slack` at most. It is
  // [rows, heads, dim]; finish(scratch) ends a computation of all units.
  template <class Data, class Kernel, class Finish>
  void CompareNear(const std::string& what, DType dtype, const Data& data, Array* array,
                   int64_t units, int64_t heads, int64_t dim, float slack, Kernel kernel,
                   Finish finish, Random* random) {
    ++cases_;
    const auto run = [&](const std::string& target, const std::vector<int64_t>& borders) {
      std::memset(array->data(), 0xFF, array->size() * sizeof(uint16_t));  // no kernel gives it
      Doing(what, target + ", ranges between " + Joined(borders));
      SetTarget(target.c_str());
      RunParts(data, kernel(), borders, random);
      finish();
      if (!array->SurroundingsUntouched()) Fail("wrote outside of the result");
      return std::vector<uint16_t>(array->data(), array->data() + array->size());
    };
    const std::vector<uint16_t> expected = run("scalar", {0, units});
    for (const uint16_t bits : expected) digest_ = (digest_ ^ bits) * 0x100000001B3u;
    for (const std::string& target : targets_) {
      const std::vector<uint16_t> whole = run(target, {0, units});
      ExpectNear(expected, whole, dtype, slack);
      run(target, RandomSplit(units, random));
      ExpectSame(whole, *array, heads, dim);
    }
  }

  // Every result is one rounding and `slack` from the expected one at most; NaN is near NaN alone.
  static void ExpectNear(const std::vector<uint16_t>& expected, const std::vector<uint16_t>& result,
                         DType dtype, float slack) {
    const bool half = dtype == DType::kFloat16;
    const float place = half ? 0x1p-10f : 0x1p-7f, least = half ? 0x1p-24f : 0x1p-133f;
    for (size_t i = 0; i < expected.size(); ++i) {
      const float a = ToFloat(expected[i], dtype), b = ToFloat(result[i], dtype);
      const float most = std::max(std::abs(a), std::abs(b)) * place + least + slack;
      if ((std::isnan(a) && std::isnan(b)) || std::abs(a - b) <= most) continue;
      Fail(Text("result[%d] is %g, the scalar kernel gives %g", static_cast<int>(i), b, a));
      return;
    }
  }

  // `result` against `expected`, [rows, heads, dim].
  static void ExpectSame(const std::vector<uint16_t>& expected, Array& result, int64_t heads,
                         int64_t dim) {
    for (size_t i = 0; i < expected.size(); ++i) {
      if (result[i] == expected[i]) continue;
      const auto at = static_cast<int64_t>(i);
      Fail(Text("result[%d, %d, %d] is 0x%04X, expected is 0x%04X",
                static_cast<int>(at / dim / heads), static_cast<int>(at / dim % heads),
                static_cast<int>(at % dim), result[i], expected[i]));
      return;
    }
  }

 private:
  template <class Data, class Run>
  void RunParts(const Data& data, Run run, const std::vector<int64_t>& borders, Random* random) {
    std::vector<size_t> order(borders.size() - 1);
    std::iota(order.begin(), order.end(), 0);
    Shuffle(&order, random);
    for (const size_t part : order) {
      const auto place = static_cast<Place>(random->Between(0, 2));
      RunRange(data, run, borders[part], borders[part + 1], place,
               static_cast<size_t>(random->Between(0, 1)));
    }
  }

  std::vector<std::string> targets_;
  uint64_t digest_ = 0xCBF29CE484222325u;  // FNV-1a
  int cases_ = 0;
};

inline Place RandomPlace(Random* random) { return static_cast<Place>(random->Between(0, 2)); }

inline std::vector<uint16_t> RandomBits(size_t size, Random* random) {
  std::vector<uint16_t> bits(size);
  for (uint16_t& element : bits) element = static_cast<uint16_t>(random->Next());
  return bits;
}

// N and D whose product stays within `most`.
inline void RandomHeads(int64_t most, int64_t most_heads, Random* random, Case* c) {
  constexpr int64_t kHeads[] = {1, 1, 2, 3, 4, 5, 7, 8, 16, 33, 63, 128};
  do {
    c->heads = kHeads[random->Between(0, 11)];
    c->dim = 16 * random->Between(1, 16);
  } while (c->heads * c->dim > most || c->heads > most_heads);
}

// Multiples of 2^-8 in [-1, 1].
inline void FillFractions(DType dtype, Array* array, Random* random) {
  for (size_t i = 0; i < array->size(); ++i) {
    const float value = static_cast<float>(random->Between(-256, 256)) * 0x1p-8f;
    (*array)[i] = dtype == DType::kFloat16 ? Float16::FromFloat(value) : BFloat16::FromFloat(value);
  }
}

// What two float32 computations of attention may differ by before they are rounded, with such
// numbers: the errors of a logit change its weight in proportion, those of both sums add to it.
inline float AttentionSlack(int64_t dim, int64_t tokens, float scale) {
  const float place = 0x1p-24f, products = static_cast<float>(dim);
  const float logit = place * (products + 2) * products * std::abs(scale);
  return 2 * (2 * logit + place * static_cast<float>(2 * tokens + 20));
}

// --------------------------------------------------------------------------------------------------
// The C interface, which starts threads of its own. The inputs are large enough for five of them
// (kBytesWorthAThread in parallel.cc).

// `across`: the targets give the same bits, too.
template <class Call>
void CompareThreads(const std::string& what, const std::vector<std::string>& targets, Array* result,
                    const std::vector<uint16_t>& before, int64_t heads, int64_t dim, Call call,
                    bool across = true) {
  char error[512] = "";
  const auto run = [&](const std::string& target, int64_t threads) {
    std::memcpy(result->data(), before.data(), before.size() * sizeof(uint16_t));
    Doing(what, Text("%s, %d threads", target.c_str(), static_cast<int>(threads)));
    int failed = nsa_set_cpu_target(target.c_str(), error, sizeof error);
    InMode(static_cast<size_t>(threads),
           [&] { failed = failed || call(threads, error, sizeof error); });
    if (failed) Fail(error);
    if (!result->SurroundingsUntouched()) Fail("wrote outside of the result");
    return std::vector<uint16_t>(result->data(), result->data() + before.size());
  };
  std::vector<uint16_t> expected = run("scalar", 1);
  for (const std::string& target : targets) {
    if (!across) expected = run(target, 1);
    for (int64_t threads = 1; threads <= 5; ++threads) {
      run(target, threads);
      Tester::ExpectSame(expected, *result, heads, dim);
    }
  }
}

}  // namespace nsa::cpu

#endif  // NSA_ONNX_TESTS_CPU_TESTER_H_
