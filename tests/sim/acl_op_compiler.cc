// libacl_op_compiler.so of the simulated CANN: single operators, compiled and run by name. The few
// that onnxruntime-cann's own kernels ask for when standard nodes stand beside ours; another name
// is refused.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "descriptors.h"
#include "half.h"
#include "not_simulated.h"
#include "simulator.h"

struct aclopAttr {
  std::map<std::string, double> numbers;  // bool, int, float
  std::map<std::string, std::vector<std::int64_t>> lists;
};

namespace nsa_sim {
namespace {

constexpr int kFault = ACL_ERROR_RT_AICORE_EXCEPTION;

using Dims = std::vector<std::int64_t>;

std::int64_t product(const Dims& dims) {
  std::int64_t result = 1;
  for (const std::int64_t dim : dims) result *= dim;
  return result;
}

struct Operand {
  aclTensorDesc desc;
  void* address;    // on the device, unless desc.is_constant
  std::byte* data;  // set on the worker

  std::int64_t count() const { return product(desc.dims); }
  std::size_t size() const {
    return static_cast<std::size_t>(count()) * aclDataTypeSize(desc.type);
  }
};

struct Job {
  std::string name;
  std::vector<Operand> inputs, outputs;
  aclopAttr attributes;
};

// ---------------------------------------------------------------------------------------------------
// Element types

template <float (*kLoad)(std::uint16_t), std::uint16_t (*kStore)(float, Rounding)>
struct Half {
  std::uint16_t bits;
  Half() = default;
  explicit Half(float value) : bits(kStore(value, Rounding::kNearestEven)) {}
  explicit operator float() const { return kLoad(bits); }
};
using Float16 = Half<from_float16, to_float16>;
using BFloat16 = Half<from_bfloat16, to_bfloat16>;

// Half types are computed with in float32, the others in themselves.
template <class T>
using Wide = std::conditional_t<std::is_arithmetic_v<T>, T, float>;

template <class T>
Wide<T> wide(T value) {
  return static_cast<Wide<T>>(value);
}

// Calls body(T{}) with the C++ type of `type`.
template <class Body>
void with_type(aclDataType type, Body body) {
  switch (type) {
    case ACL_FLOAT:
      return body(float{});
    case ACL_FLOAT16:
      return body(Float16{});
    case ACL_BF16:
      return body(BFloat16{});
    case ACL_DOUBLE:
      return body(double{});
    case ACL_INT8:
      return body(std::int8_t{});
    case ACL_UINT8:
      return body(std::uint8_t{});
    case ACL_INT16:
      return body(std::int16_t{});
    case ACL_UINT16:
      return body(std::uint16_t{});
    case ACL_INT32:
      return body(std::int32_t{});
    case ACL_UINT32:
      return body(std::uint32_t{});
    case ACL_INT64:
      return body(std::int64_t{});
    case ACL_UINT64:
      return body(std::uint64_t{});
    case ACL_BOOL:
      return body(bool{});
    default:
      throw DeviceFault{kFault, text("data type %d is not simulated", type)};
  }
}

template <class T>
T* elements(const Operand& operand) {
  return reinterpret_cast<T*>(operand.data);
}

// ---------------------------------------------------------------------------------------------------
// Operators

template <class Operation>
void binary(const Job& job, Operation operation) {
  with_type(job.outputs[0].desc.type, [&](auto type) {
    using T = decltype(type);
    const T *a = elements<T>(job.inputs[0]), *b = elements<T>(job.inputs[1]);
    T* out = elements<T>(job.outputs[0]);
    for (std::int64_t i = 0; i < job.outputs[0].count(); ++i)
      out[i] = static_cast<T>(operation(wide(a[i]), wide(b[i])));
  });
}

template <class Operation>
void unary(const Job& job, Operation operation) {
  with_type(job.outputs[0].desc.type, [&](auto type) {
    using T = decltype(type);
    const T* in = elements<T>(job.inputs[0]);
    T* out = elements<T>(job.outputs[0]);
    for (std::int64_t i = 0; i < job.outputs[0].count(); ++i)
      out[i] = static_cast<T>(static_cast<Wide<T>>(operation(static_cast<double>(wide(in[i])))));
  });
}

void cast(const Job& job) {
  with_type(job.inputs[0].desc.type, [&](auto from) {
    using From = decltype(from);
    with_type(job.outputs[0].desc.type, [&](auto to) {
      using To = decltype(to);
      const From* in = elements<From>(job.inputs[0]);
      To* out = elements<To>(job.outputs[0]);
      for (std::int64_t i = 0; i < job.outputs[0].count(); ++i)
        out[i] = static_cast<To>(static_cast<Wide<To>>(wide(in[i])));
    });
  });
}

// Where element `flat` of an array with `dims` lies in one whose dim d has `strides[d]`.
std::int64_t position(std::int64_t flat, const Dims& dims, const Dims& strides) {
  std::int64_t result = 0;
  for (std::size_t d = dims.size(); d-- > 0;) {
    result += flat % dims[d] * strides[d];
    flat /= dims[d];
  }
  return result;
}

Dims row_major(const Dims& dims) {
  Dims strides(dims.size(), 1);
  for (std::size_t d = dims.size(); d-- > 1;) strides[d - 1] = strides[d] * dims[d];
  return strides;
}

// Copies whole elements from where `strides` (by output dim) say.
void gather(const Job& job, const Dims& strides) {
  const Operand& out = job.outputs[0];
  const std::size_t size = aclDataTypeSize(out.desc.type);
  for (std::int64_t i = 0; i < out.count(); ++i)
    std::memcpy(
        out.data + static_cast<std::size_t>(i) * size,
        job.inputs[0].data + static_cast<std::size_t>(position(i, out.desc.dims, strides)) * size,
        size);
}

void transpose(const Job& job) {
  const Dims& perm = job.attributes.lists.at("perm");
  const Dims in = row_major(job.inputs[0].desc.dims);
  Dims strides;
  for (const std::int64_t from : perm) strides.push_back(in.at(static_cast<std::size_t>(from)));
  gather(job, strides);
}

// Strides of an array of `dims` seen as one of `shape`: 0 along what is repeated.
Dims broadcast_strides(const Dims& dims, const Dims& shape) {
  const Dims own = row_major(dims);
  Dims strides(shape.size(), 0);
  const std::size_t lead = shape.size() - dims.size();
  for (std::size_t d = 0; d < dims.size(); ++d) strides[lead + d] = dims[d] == 1 ? 0 : own[d];
  return strides;
}

void broadcast(const Job& job) {
  gather(job, broadcast_strides(job.inputs[0].desc.dims, job.outputs[0].desc.dims));
}

// A matrix operand read row by row, or column by column when it is to be transposed.
struct Matrix {
  std::int64_t rows, columns, row_stride, column_stride;
  static Matrix of(std::int64_t rows, std::int64_t columns, bool transposed) {
    if (transposed) return {columns, rows, 1, columns};
    return {rows, columns, columns, 1};
  }
  std::int64_t at(std::int64_t i, std::int64_t k) const {
    return i * row_stride + k * column_stride;
  }
};

template <class T>
Wide<T> dot(const T* a, const Matrix& left, std::int64_t i, const T* b, const Matrix& right,
            std::int64_t j) {
  Wide<T> sum{};
  for (std::int64_t k = 0; k < left.columns; ++k)
    sum = static_cast<Wide<T>>(sum + wide(a[left.at(i, k)]) * wide(b[right.at(k, j)]));
  return sum;
}

// Leading dims broadcast; a vector operand counts as a matrix with one row or column.
void batch_matmul(const Job& job) {
  Dims a = job.inputs[0].desc.dims, b = job.inputs[1].desc.dims;
  if (a.size() == 1) a.insert(a.begin(), 1);
  if (b.size() == 1) b.push_back(1);
  const Matrix left = Matrix::of(a[a.size() - 2], a.back(), false);
  const Matrix right = Matrix::of(b[b.size() - 2], b.back(), false);
  const std::int64_t size = left.rows * right.columns;
  Dims batch(std::max(a.size(), b.size()) - 2, 1);
  for (const Dims* dims : {&a, &b})
    for (std::size_t d = 0; d + 2 < dims->size(); ++d) {
      std::int64_t& dim = batch[batch.size() - (dims->size() - 2) + d];
      dim = std::max(dim, (*dims)[d]);
    }
  const Dims a_step = broadcast_strides(Dims(a.begin(), a.end() - 2), batch);
  const Dims b_step = broadcast_strides(Dims(b.begin(), b.end() - 2), batch);
  with_type(job.outputs[0].desc.type, [&](auto type) {
    using T = decltype(type);
    T* out = elements<T>(job.outputs[0]);
    for (std::int64_t m = 0; m < product(batch); ++m) {
      const T* x =
          elements<T>(job.inputs[0]) + position(m, batch, a_step) * left.rows * left.columns;
      const T* y =
          elements<T>(job.inputs[1]) + position(m, batch, b_step) * right.rows * right.columns;
      for (std::int64_t e = 0; e < size; ++e)
        out[m * size + e] =
            static_cast<T>(dot(x, left, e / right.columns, y, right, e % right.columns));
    }
  });
}

// alpha * A @ B + beta * C; inputs A, B, C, alpha, beta.
void gemm(const Job& job) {
  const auto flag = [&](const char* name) {
    const auto found = job.attributes.numbers.find(name);
    return found != job.attributes.numbers.end() && found->second != 0;
  };
  const Dims &a = job.inputs[0].desc.dims, &b = job.inputs[1].desc.dims;
  const Matrix left = Matrix::of(a[0], a[1], flag("transpose_a"));
  const Matrix right = Matrix::of(b[0], b[1], flag("transpose_b"));
  with_type(job.outputs[0].desc.type, [&](auto type) {
    using T = decltype(type);
    const auto alpha = wide(*elements<T>(job.inputs[3])), beta = wide(*elements<T>(job.inputs[4]));
    const T* c = elements<T>(job.inputs[2]);
    T* out = elements<T>(job.outputs[0]);
    for (std::int64_t e = 0; e < left.rows * right.columns; ++e) {
      const auto sum = dot(elements<T>(job.inputs[0]), left, e / right.columns,
                           elements<T>(job.inputs[1]), right, e % right.columns);
      out[e] = static_cast<T>(static_cast<Wide<T>>(alpha * sum + beta * wide(c[e])));
    }
  });
}

struct Operator {
  std::size_t inputs;
  void (*run)(const Job&);
};

const std::map<std::string, Operator>& operators() {
  static const auto* table = new std::map<std::string, Operator>{
      {"Add", {2, [](const Job& job) { binary(job, [](auto a, auto b) { return a + b; }); }}},
      {"Sub", {2, [](const Job& job) { binary(job, [](auto a, auto b) { return a - b; }); }}},
      {"Mul", {2, [](const Job& job) { binary(job, [](auto a, auto b) { return a * b; }); }}},
      {"Div",
       {2,
        [](const Job& job) {
          binary(job, [](auto a, auto b) -> decltype(a / b) {
            if constexpr (std::is_integral_v<decltype(b)>)
              if (b == 0) throw DeviceFault{kFault, "Div: integer division by 0"};
            return a / b;
          });
        }}},
      {"Cast", {1, cast}},
      {"TransposeD", {1, transpose}},
      {"BroadcastToD", {1, broadcast}},
      {"BatchMatMul", {2, batch_matmul}},
      {"GEMM", {5, gemm}},
      {"Abs", {1, [](const Job& job) { unary(job, [](double x) { return std::fabs(x); }); }}},
      {"Neg", {1, [](const Job& job) { unary(job, [](double x) { return -x; }); }}},
      {"Cos", {1, [](const Job& job) { unary(job, [](double x) { return std::cos(x); }); }}},
      {"Sin", {1, [](const Job& job) { unary(job, [](double x) { return std::sin(x); }); }}},
      {"Exp", {1, [](const Job& job) { unary(job, [](double x) { return std::exp(x); }); }}},
      {"Sqrt", {1, [](const Job& job) { unary(job, [](double x) { return std::sqrt(x); }); }}},
      {"Relu", {1, [](const Job& job) { unary(job, [](double x) { return x < 0 ? 0 : x; }); }}},
      {"Sigmoid",
       {1, [](const Job& job) { unary(job, [](double x) { return 1 / (1 + std::exp(-x)); }); }}},
      {"Tanh", {1, [](const Job& job) { unary(job, [](double x) { return std::tanh(x); }); }}},
  };
  return *table;
}

// ---------------------------------------------------------------------------------------------------

Operand operand(const aclTensorDesc* desc, const aclDataBuffer* buffer, int code) {
  Operand result{live(Kind::kTensorDesc, desc, "desc"),
                 live(Kind::kDataBuffer, buffer, "buffer").data, nullptr};
  if (buffer->size < result.size())
    throw Refused{code, text("a buffer has %zu bytes, its description needs %zu", buffer->size,
                             result.size())};
  if (result.desc.on_host && !result.desc.is_constant) {
    const auto* bytes = static_cast<const std::byte*>(result.address);
    result.desc.constant.assign(bytes, bytes + result.size());
    result.desc.is_constant = true;
  }
  if (result.desc.is_constant && result.desc.constant.size() < result.size())
    throw Refused{code, "a constant is shorter than its description"};
  return result;
}

void find_data(Job& job) {
  const char* name = job.name.c_str();
  for (Operand& each : job.inputs)
    each.data = each.desc.is_constant ? each.desc.constant.data()
                                      : device_bytes(each.address, each.size(), kFault, name);
  for (Operand& each : job.outputs)
    each.data = device_bytes(each.address, each.size(), kFault, name);
}

void run(Job& job) {
  if (job.outputs[0].count() == 0) return;
  find_data(job);
  operators().at(job.name).run(job);
}

aclopAttr& attributes(aclopAttr* attr) {
  require_live(Kind::kOpAttr, attr, "attr");
  return *attr;
}

}  // namespace
}  // namespace nsa_sim

using namespace nsa_sim;

extern "C" {

aclopAttr* aclopCreateAttr() {
  return call_for<aclopAttr*>(__func__, kNothing, nullptr, [] {
    auto* attr = new aclopAttr;
    add_handle(Kind::kOpAttr, attr);
    return attr;
  });
}

void aclopDestroyAttr(const aclopAttr* attr) {
  call(__func__, kNothing | kCarriedOut, [&] {
    remove_handle(Kind::kOpAttr, attr);
    delete attr;
  });
}

aclError aclopSetAttrBool(aclopAttr* attr, const char* attrName, uint8_t attrValue) {
  return call(__func__, kNothing, [&] { attributes(attr).numbers[attrName] = attrValue; });
}

aclError aclopSetAttrInt(aclopAttr* attr, const char* attrName, int64_t attrValue) {
  return call(__func__, kNothing,
              [&] { attributes(attr).numbers[attrName] = static_cast<double>(attrValue); });
}

aclError aclopSetAttrFloat(aclopAttr* attr, const char* attrName, float attrValue) {
  return call(__func__, kNothing, [&] { attributes(attr).numbers[attrName] = attrValue; });
}

aclError aclopSetAttrString(aclopAttr* attr, const char*, const char*) {
  return call(__func__, kNothing, [&] { attributes(attr); });  // no simulated operator reads one
}

aclError aclopSetAttrListInt(aclopAttr* attr, const char* attrName, int numValues,
                             const int64_t* values) {
  return call(__func__, kNothing,
              [&] { attributes(attr).lists[attrName] = Dims(values, values + numValues); });
}

// Options of the compiler that there is none of. torch_npu finds them by name.
__attribute__((visibility("default"))) aclError aclSetCompileopt() {
  return call(__func__, kInit, [] {});
}

__attribute__((visibility("default"))) aclError aclopSetCompileFlag() {
  return call(__func__, kInit, [] {});
}

aclError aclopCompileAndExecute(const char* opType, int numInputs,
                                const aclTensorDesc* const inputDesc[],
                                const aclDataBuffer* const inputs[], int numOutputs,
                                const aclTensorDesc* const outputDesc[],
                                aclDataBuffer* const outputs[], const aclopAttr* attr,
                                aclopEngineType, aclopCompileType, const char*,
                                aclrtStream stream) {
  return call(__func__, kContext, [&] {
    const auto found = operators().find(opType);
    if (found == operators().end())
      throw Refused{ACL_ERROR_OP_NOT_FOUND, text("operator %s is not simulated", opType)};
    if (static_cast<std::size_t>(numInputs) != found->second.inputs)
      throw Refused{ACL_ERROR_OP_INPUT_NOT_MATCH, text("%s has %d inputs", opType, numInputs)};
    if (numOutputs != 1)
      throw Refused{ACL_ERROR_OP_OUTPUT_NOT_MATCH, text("%s has %d outputs", opType, numOutputs)};
    auto job = std::make_shared<Job>();
    job->name = opType;
    for (int i = 0; i < numInputs; ++i)
      job->inputs.push_back(operand(inputDesc[i], inputs[i], ACL_ERROR_OP_INPUT_NOT_MATCH));
    job->outputs.push_back(operand(outputDesc[0], outputs[0], ACL_ERROR_OP_OUTPUT_NOT_MATCH));
    if (attr != nullptr) job->attributes = live(Kind::kOpAttr, attr, "attr");
    submit(stream, found->first.c_str(), [job] { run(*job); });
  });
}
}

NOT_SIMULATED(aclopSetAttrDataType)
NOT_SIMULATED(aclopSetAttrListBool)
NOT_SIMULATED(aclopSetAttrListFloat)
NOT_SIMULATED(aclopSetAttrListListInt)
