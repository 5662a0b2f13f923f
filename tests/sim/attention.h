// The arithmetic of the vendor's attention operators: float32 logits and sums, P rounded to the
// 16-bit type before it is multiplied with the values.
#ifndef NSA_ONNX_TESTS_SIM_ATTENTION_H_
#define NSA_ONNX_TESTS_SIM_ATTENTION_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "opapi.h"

namespace nsa_sim {

constexpr float kLowest = std::numeric_limits<float>::lowest();  // a masked logit
constexpr float kForced = std::numeric_limits<float>::infinity();

inline long long ll(std::int64_t value) { return static_cast<long long>(value); }

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline std::vector<float> floats(const aclTensor& argument, const char* name) {
  const std::uint16_t* bits = halves(argument, name);
  std::vector<float> values(static_cast<std::size_t>(element_count(argument)));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = to_float(bits[i], argument.type);
  return values;
}

inline const std::uint8_t* bytes_of(const aclTensor& argument, const char* name) {
  return reinterpret_cast<const std::uint8_t*>(
      device_bytes(argument.data, static_cast<std::size_t>(element_count(argument)), kFault, name));
}

inline float* mutable_floats(const aclTensor& argument, const char* name) {
  return reinterpret_cast<float*>(device_bytes(
      argument.data, static_cast<std::size_t>(element_count(argument)) * 4, kFault, name));
}

inline std::int32_t* mutable_indices(const aclTensor& argument, const char* name) {
  return const_cast<std::int32_t*>(indices(argument, name));
}

inline float dot(const float* a, const float* b, std::int64_t size) {
  float sum = 0;
  for (std::int64_t i = 0; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

struct Softmax {
  float maximum, sum;
};

// Of logits, in place.
inline Softmax softmax(std::vector<float>& row) {
  float maximum = row.empty() ? 0 : row[0], sum = 0;
  for (const float logit : row)
    if (std::isnan(logit) || logit > maximum) maximum = logit;
  for (float& logit : row) sum += logit = std::exp(logit - maximum);
  for (float& each : row) each /= sum;
  return {maximum, sum};
}

// One head's result from its P and, for each of P's columns, where the values of that token begin.
inline void put_result(const std::vector<float>& p, const std::vector<const float*>& values,
                       std::int64_t dim, aclDataType type, Rounding of_p, std::uint16_t* out) {
  std::vector<float> sums(static_cast<std::size_t>(dim), 0.0f);
  for (std::size_t j = 0; j < p.size(); ++j) {
    const float weight = to_float(from_float(p[j], type, of_p), type);
    for (std::int64_t d = 0; d < dim; ++d)
      sums[static_cast<std::size_t>(d)] += weight * values[j][d];
  }
  for (std::int64_t d = 0; d < dim; ++d)
    out[d] = from_float(sums[static_cast<std::size_t>(d)], type, Rounding::kNearestEven);
}

// What one head adds to the scores of its group's blocks. Block s counts compressed tokens that end
// with number per_block * (s + 1); `overlap` windows share a token.
inline void add_scores(const std::vector<float>& p, std::int64_t per_block, std::int64_t overlap,
                       std::vector<float>& scores) {
  const std::int64_t terms = per_block + overlap - 1;
  for (std::size_t s = 0; s < scores.size(); ++s) {
    for (std::int64_t i = 0; i < terms; ++i) {
      const std::int64_t j = per_block * (static_cast<std::int64_t>(s) + 1) - i;
      if (j < 0 || j >= static_cast<std::int64_t>(p.size())) continue;
      const std::int64_t times = std::min({i + 1, overlap, terms - i});
      scores[s] += static_cast<float>(times) * p[static_cast<std::size_t>(j)];
    }
  }
}

// The blocks of the highest scores, equal ones by ascending number. There are at least `count` of
// them.
inline void put_highest(const std::vector<float>& scores, std::int64_t count, std::int32_t* out) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](std::int32_t s) {
    const float score = scores[static_cast<std::size_t>(s)];
    return std::isnan(score) ? kForced : score;
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return key(a) > key(b); });
  std::copy_n(order.begin(), count, out);
}

// Row number `token` of sequence `b` in a paged cache. Every index that leaves its array is a
// fault.
inline std::int64_t paged_row(const std::int32_t* table, std::int64_t columns, std::int64_t pages,
                              std::int64_t page, std::int64_t b, std::int64_t token) {
  const std::int64_t column = token / page;
  if (column >= columns)
    throw DeviceFault{kFault, text("token %lld of sequence %lld: blockTable has %lld columns",
                                   ll(token), ll(b), ll(columns))};
  const std::int32_t number = table[b * columns + column];
  if (number < 0 || number >= pages)
    throw DeviceFault{kFault, text("blockTable[%lld, %lld] = %d, there are %lld pages", ll(b),
                                   ll(column), number, ll(pages))};
  return number * page + token % page;
}

// ---------------------------------------------------------------------------------------------------
// Checks

inline bool divides_128(std::int64_t group) {
  return group >= 1 && group <= 128 && 128 % group == 0;
}

inline const std::vector<std::int64_t>& integers(const aclIntArray* argument, const char* name) {
  if (argument == nullptr) throw Refused{ACLNN_ERR_PARAM_NULLPTR, text("%s is null", name)};
  return live(Kind::kIntArray, argument, name).values;
}

// Lengths from prefix sums; a decreasing sum counts as an empty sequence, as the vendor's tiling
// has it.
inline std::vector<std::int64_t> lengths_from(const std::vector<std::int64_t>& ends) {
  std::vector<std::int64_t> lengths;
  std::int64_t begin = 0;
  for (const std::int64_t end : ends) {
    lengths.push_back(std::max<std::int64_t>(end - begin, 0));
    begin = end;
  }
  return lengths;
}

inline void require_one_type(const aclTensor& query, const aclTensor& key, const aclTensor& value,
                             const aclTensor& out) {
  require_half(query, "query");
  for (const aclTensor* each : {&key, &value, &out})
    if (each->type != query.type) invalid("query, key, value and output differ in type");
}

inline void require_dims(const aclTensor& argument, const char* name,
                         const std::vector<std::int64_t>& dims) {
  if (argument.dims == dims) return;
  std::string want, got;
  for (const std::int64_t dim : dims) want += text(" %lld", ll(dim));
  for (const std::int64_t dim : argument.dims) got += text(" %lld", ll(dim));
  invalid(text("%s is [%s ], needed is [%s ]", name, got.c_str(), want.c_str()));
}

inline void require_not_empty(const aclTensor& argument, const char* name) {
  if (element_count(argument) == 0) invalid(text("%s is empty", name));
}

inline void require_windows(std::int64_t block, std::int64_t stride, std::int64_t select) {
  if (block < 16 || block > 128 || block % 16 != 0) tiling("compressBlockSize: 16 to 128 by 16");
  if (stride < 16 || stride > 64 || stride % 16 != 0) tiling("compressStride: 16, 32, 48 or 64");
  if (select < 16 || select > 128 || select % 16 != 0) tiling("selectBlockSize: 16 to 128 by 16");
  if (stride > block || block > select)
    tiling("compressStride <= compressBlockSize <= selectBlockSize");
  if (select % stride != 0) tiling("selectBlockSize must be divisible by compressStride");
}

}  // namespace nsa_sim

#endif  // NSA_ONNX_TESTS_SIM_ATTENTION_H_
