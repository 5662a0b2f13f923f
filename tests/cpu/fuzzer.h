// A differential fuzzer of the C interface: random calls of every operator, legal and hostile, on
// every instruction set that was compiled, on one and on several threads. fuzz/*.cc has each
// operator's part: how a case is made, what it must give, how it is called. fuzz.cc runs them.
//
// A case holds every number of a call but the elements of its arrays, which Generator draws from
// the case's kind of values and its seed: a case that was printed can be put into `found`.
#ifndef NSA_ONNX_TESTS_CPU_FUZZER_H_
#define NSA_ONNX_TESTS_CPU_FUZZER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "c_api/c_api.h"
#include "numbers.h"
#include "plan/dtype.h"
#include "values.h"

namespace nsa::cpu::fuzz {

using Dims = std::vector<int64_t>;

// Elements of an array at most. Made-up shapes stay below it.
constexpr int64_t kMostElements = int64_t{1} << 22;

// An array of exactly its size on the heap, where AddressSanitizer sees an access beyond either
// end. `shift` elements lie before it, which puts it at any address that is aligned to an element.
class Memory {
 public:
  template <class T>
  Memory(const char* name, Dims dims, const std::vector<T>& values, int64_t shift)
      : name_(name), dims_(std::move(dims)), item_(sizeof(T)) {
    offset_ = static_cast<size_t>(shift) * sizeof(T);
    bytes_ = std::vector<unsigned char>(offset_ + values.size() * sizeof(T), 0xFF);
    bytes_.shrink_to_fit();
    if (!values.empty()) std::memcpy(data(), values.data(), values.size() * sizeof(T));
    before_ = bytes_;
  }

  const char* name() const { return name_; }
  const Dims& dims() const { return dims_; }
  size_t item() const { return item_; }  // bytes of an element
  size_t size() const { return (bytes_.size() - offset_) / item_; }
  void* data() { return bytes_.data() + offset_; }
  NsaArray array() { return {data(), dims_.data(), static_cast<int64_t>(dims_.size())}; }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(bytes_.data() + offset_);
  }
  bool IsUntouched() const { return bytes_ == before_; }
  bool BeginUntouched() const {
    return std::equal(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(offset_),
                      before_.begin());
  }
  void Restore() { bytes_ = before_; }
  // Of the integers of an index array: one of them becomes `value`, as another thread would do it.
  void Poke(size_t index, int64_t value);
  // The whole of it, also what lies before.
  const std::vector<unsigned char>& bytes() const { return bytes_; }

 private:
  const char* name_;
  Dims dims_;
  size_t item_, offset_;
  std::vector<unsigned char> bytes_, before_;
};

// The same call as a node of a model. An input that is an output as well is updated in place.
struct Node {
  const char* op = nullptr;  // null: a node cannot say this
  DType dtype = DType::kFloat16;
  std::vector<Memory*> inputs;  // as the node has them; null: left out
  std::vector<std::pair<const char*, std::variant<int64_t, double>>> attributes;
};

// One call: what it reads and writes, and what must come of it.
struct Call {
  std::vector<Memory*> inputs;   // must stay as they are
  std::vector<Memory*> indices;  // the inputs that are indices: int32 or int64
  std::vector<Memory*> outputs;
  bool legal;      // if not, it must be refused and the outputs left as they are
  bool same_bits;  // on all instruction sets; if not, on any number of threads
  std::function<int(int64_t threads, char* error, int64_t error_size)> call;
  // What is wrong with the outputs after a legal call; empty if nothing is. Not `exact`: computed
  // by who rounds elsewhere.
  std::function<std::string(bool exact)> judge;
  Node node;
};

// A way to make a call that is not the operator's C function (nodes.cc). Its `run` returns 0, 1 if
// the call was refused, kCannot if it is more than the way's device or backend takes.
struct Way {
  const char* name;
  bool is_exact;  // its numbers are the C function's
  std::function<int(const Call&, char* error, int64_t error_size)> run;
};
constexpr int kCannot = 2;
std::vector<Way>& Ways();

// Runs the calls of a case; the operators' parts hand theirs to it.
class Runner {
 public:
  // With `alone`, the runner may switch the instruction set; it tries all of them then.
  Runner(std::vector<std::string> targets, bool alone, size_t index)
      : targets_(std::move(targets)), alone_(alone), index_(index) {}

  void Begin(const std::string& text, uint64_t seed);
  void Run(const Call& call);
  int64_t legal() const { return legal_; }
  int64_t refused() const { return refused_; }
  // How often nodes were computed by who is not exact.
  int64_t elsewhere() const { return elsewhere_; }

 private:
  // Returns whether it was computed.
  bool Once(const Call& call, const std::string& how, int64_t threads, bool exact = true);
  void Race(const Call& call);
  void AsNode(const Call& call, const Way& way);

  std::vector<std::string> targets_;
  bool alone_;
  size_t index_;  // of the thread that runs it, for the messages
  Random random_{0};
  int64_t legal_ = 0, refused_ = 0, elsewhere_ = 0;
};

// Ends the process, with the case in words that can be put into `found`.
[[noreturn]] void Fail(const std::string& what);

// An operator's part.
struct Part {
  const char* name;  // of its C function, and of its source
  std::function<void(Runner*)> found;
  std::function<void(Runner*, uint64_t seed)> random;
};
std::vector<Part>& Parts();

// Case: `Case Make(Random*)`, a legal one; `void Spoil(Case*, Random*)` changes it in one place, so
// that most are not legal any more; `std::string Print(const Case&)`; `void Run(const Case&,
// Runner*)`. `found` are cases that failed once.
template <class Case>
struct Register {
  Register(const char* name, Case (*make)(Random*), void (*spoil)(Case*, Random*),
           std::string (*print)(const Case&), void (*run)(const Case&, Runner*),
           std::vector<Case> found) {
    const auto one = [=](Runner* runner, const Case& c) {
      runner->Begin(name + (": " + print(c) + ","), c.seed);
      run(c, runner);
    };
    Parts().push_back({name,
                       [=](Runner* runner) {
                         for (const Case& c : found) one(runner, c);
                       },
                       [=](Runner* runner, uint64_t seed) {
                         Random random(seed);
                         Case c = make(&random);
                         c.seed = seed;
                         // Most: what is refused is soon done.
                         if (!random.OneIn(3)) spoil(&c, &random);
                         one(runner, c);
                       }});
  }
};

// --------------------------------------------------------------------------------------------------
// For the operators' parts

// A case as C++, field by field.
class Printer {
 public:
  Printer() = default;
  Printer(DType dtype, Values values, uint64_t seed);
  Printer& Add(const char* field, int64_t value) { return AddText(field, Literal(value)); }
  Printer& Add(const char* field, double value);
  template <class T>
  Printer& Add(const char* field, const std::vector<T>& values) {
    std::string text;
    for (const T value : values) text += (text.empty() ? "" : ", ") + Literal(value);
    return AddText(field, "{" + text + "}");
  }
  Printer& Add(const char* field, const Printer& fields) { return AddText(field, fields.text()); }
  std::string text() const { return "{" + text_ + "}"; }

 private:
  static std::string Literal(int64_t value);
  Printer& AddText(const char* field, const std::string& text) {
    text_ += (text_.empty() ? "." : ", .") + std::string(field) + " = " + text;
    return *this;
  }
  std::string text_;
};

template <class T>
const T& OneOf(const std::vector<T>& choices, Random* random) {
  return choices[static_cast<size_t>(random->Between(0, static_cast<int64_t>(choices.size()) - 1))];
}

// An index that may be wrong where those from 0 to `limit` are right.
inline int64_t Hostile(int64_t limit, Random* random) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max(),
                    kLeast = std::numeric_limits<int64_t>::min();
  const int64_t word = int64_t{1} << 31;
  if (random->OneIn(2)) return OneOf<int64_t>({-2, -1, limit - 1, limit, limit + 1}, random);
  return OneOf<int64_t>(
      {0, 1, 2 * limit, word - 1, word, -word, 2 * word, kMost, kMost - 15, kLeast, kLeast + 16},
      random);
}

// A number of a call, changed.
inline void SpoilNumber(int64_t* number, Random* random) {
  *number = OneOf<int64_t>({*number - 1, *number + 1, *number - 16, *number + 16, 2 * *number, 0,
                            -*number, *number + (int64_t{1} << 32)},
                           random);
}

// A list of indices, changed in one place. Those of element i are right from 0 to below
// `limit_of(i)`.
template <class T, class LimitOf>
void SpoilEach(std::vector<T>* list, LimitOf limit_of, Random* random) {
  if (list->empty()) return;
  const size_t last = list->size() - 1;
  const auto any = [&] {
    const auto place = static_cast<size_t>(random->Between(0, static_cast<int64_t>(last)));
    return OneOf<size_t>({0, place, place, last}, random);
  };
  const size_t one = any();
  T& value = (*list)[one];
  const auto plus = [](T number, int64_t more) {  // may wrap: what is not read may be anything
    return static_cast<T>(static_cast<uint64_t>(number) + static_cast<uint64_t>(more));
  };
  switch (random->Between(0, 5)) {
    case 0:
      return std::swap(value, (*list)[any()]);
    case 1:
      value = T{(*list)[any()]};
      return;
    case 2:
      value = plus(value, OneOf<int64_t>({-1, 1}, random));
      return;
    case 3:  // the largest that is less than the one before
      value = plus((*list)[one > 0 ? one - 1 : 0], -1);
      return;
    default:
      value = static_cast<T>(Hostile(limit_of(one), random));
  }
}

template <class T>
void SpoilList(std::vector<T>* list, int64_t limit, Random* random) {
  SpoilEach(list, [=](size_t) { return limit; }, random);
}

inline int64_t Elements(const Dims& dims) {
  int64_t elements = 1;
  for (const int64_t dim : dims) {
    if (dim < 0) return -1;
    if (dim != 0 && elements > kMostElements / dim) return -1;
    elements *= dim;
  }
  return elements;
}

// Whether `dims` can be the shape of an array here; a spoilt case may have others.
inline bool Possible(const Dims& dims) { return Elements(dims) >= 0; }

// A spoilt number as a dim: the array is small, whatever the call says.
inline int64_t Clamped(int64_t number) {
  return std::min<int64_t>(std::max<int64_t>(number, 0), 512);
}

inline std::vector<float> ValuesOf(DType dtype, const std::vector<uint16_t>& bits) {
  std::vector<float> values;
  values.reserve(bits.size());
  for (const uint16_t element : bits) values.push_back(ValueOf(dtype, element));
  return values;
}

inline std::vector<uint16_t> RandomBits(int64_t size, Random* random) {
  std::vector<uint16_t> bits(static_cast<size_t>(size));
  for (uint16_t& element : bits) element = static_cast<uint16_t>(random->Next());
  return bits;
}

// Where `got` has other bits than `want`; NaNs are equal to one another.
std::string Difference(DType dtype, const char* name, const uint16_t* got,
                       const std::vector<uint16_t>& want, const Dims& dims);

}  // namespace nsa::cpu::fuzz

#endif  // NSA_ONNX_TESTS_CPU_FUZZER_H_
