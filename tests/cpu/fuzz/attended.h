// The attention of one query head in double, for the fuzzer's oracles, and how far float32 may be
// from it.
#ifndef NSA_ONNX_TESTS_CPU_FUZZ_ATTENDED_H_
#define NSA_ONNX_TESTS_CPU_FUZZ_ATTENDED_H_

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "fuzzer.h"

namespace nsa::cpu::fuzz {

// An output's elements as they must be: within `bound` before they are rounded. Where the bound is
// not finite, anything goes.
struct Expected {
  std::vector<double> values;
  std::vector<double> bounds;
};

// Appends one head's result. tokens: keys and values of those that it reads, as often as they
// count; without `sees`, all logits are the same.
inline void Attend(const float* query,
                   const std::vector<std::pair<const float*, const float*>>& tokens, int64_t dim,
                   int64_t value_dim, float scale, bool sees, Expected* to) {
  constexpr double kPlace = 0x1p-24;
  std::vector<double> logits;
  double most = -std::numeric_limits<double>::infinity(), error = 0;
  for (const auto& token : tokens) {
    double logit = 0, size = 0;
    for (int64_t d = 0; sees && d < dim; ++d) {
      const double product = double{query[d]} * double{token.first[d]};
      logit += product;
      size += std::fabs(product);
    }
    logits.push_back(logit * double{scale});
    most = std::max(most, logits.back());
    // Of the sum, its scaling, and the difference to the greatest one; a sum may overflow.
    const double overflow = size < 0x1p127 ? 1 : std::numeric_limits<double>::infinity();
    const double of_logit =
        kPlace * static_cast<double>(dim + 8) * size * (std::fabs(scale) + overflow - 1);
    if (!(of_logit <= error)) error = of_logit;
  }
  double total = 0;
  for (double& logit : logits) total += logit = std::exp(logit - most);
  // Of the weights in proportion; of exponential, both sums and the quotient.
  const double relative =
      std::expm1(2 * error) + kPlace * static_cast<double>(4 * tokens.size() + 64);
  for (int64_t d = 0; d < value_dim; ++d) {
    double sum = 0, size = 0;
    for (size_t j = 0; j < tokens.size(); ++j) {
      const double term = logits[j] * double{tokens[j].second[d]};
      sum += term;
      size += std::fabs(term);
    }
    to->values.push_back(tokens.empty() ? 0 : sum / total);
    // Weights below the least float32 are lost.
    const double bound = relative * size / total + 0x1p-100;
    to->bounds.push_back(tokens.empty() ? 0 : size < 0x1p100 ? bound : bound / 0.0);
  }
}

// The first element that is not what it must be; empty if all are.
inline std::string Deviation(DType dtype, const uint16_t* got, const Expected& want) {
  for (size_t i = 0; i < want.values.size(); ++i) {
    const double value = want.values[i], bound = want.bounds[i];
    if (!std::isfinite(bound) || !std::isfinite(value)) continue;
    // Rounding keeps the order: the result lies between the rounded ends of what is allowed.
    const float least = ValueOf(dtype, NearestTo(dtype, value - bound));
    const float most = ValueOf(dtype, NearestTo(dtype, value + bound));
    const float result = ValueOf(dtype, got[i]);
    if (least <= result && result <= most) continue;
    return "attention_out[" + std::to_string(i) + "] is " + std::to_string(result) +
           ", the oracle allows " + std::to_string(least) + " to " + std::to_string(most);
  }
  return {};
}

}  // namespace nsa::cpu::fuzz

#endif  // NSA_ONNX_TESTS_CPU_FUZZ_ATTENDED_H_
