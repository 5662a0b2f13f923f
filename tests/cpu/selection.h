// What the tests of the compress-attention kernels know of the blocks that a query selects, in
// float64 and from docs/operators.md.
#ifndef NSA_ONNX_TESTS_CPU_SELECTION_H_
#define NSA_ONNX_TESTS_CPU_SELECTION_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tester.h"

namespace nsa::cpu {

// Sizes of a case.
struct Selection {
  int64_t block, stride, select_block, count;

  static Selection RandomOne(Random* random) {
    Selection sizes;
    sizes.stride = 16 * random->Between(1, 4);
    const int64_t m = random->Between(1, 128 / sizes.stride);
    sizes.select_block = sizes.stride * m;
    sizes.block = 16 * random->Between(sizes.stride / 16, sizes.select_block / 16);
    sizes.count = random->OneIn(4) ? random->Between(1, 128) : random->Between(1, 6);
    return sizes;
  }
};

// Adds the probabilities of one query head to importance[0 .. tokens - 1]: `logit(j)`.
template <class Logit>
void AddProbabilities(int64_t tokens, Logit logit, std::vector<double>* importance) {
  std::vector<double> p;
  double most = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t j = 0; j < tokens; ++j) {
    p.push_back(logit(j));
    most = std::max(most, p.back());
  }
  for (double& each : p) sum += each = std::exp(each - most);
  for (size_t j = 0; j < p.size(); ++j) (*importance)[j] += p[j] / sum;
}

// Whether `selected` may be the blocks of highest score, where scores may be wrong by `error`.
// forced[s]: always selected.
inline void ExpectSelected(const Selection& sizes, const std::vector<double>& importance,
                           const std::vector<bool>& forced, double error, const int32_t* selected) {
  const int64_t m = sizes.select_block / sizes.stride, n = sizes.block / sizes.stride;
  const auto blocks = static_cast<int64_t>(forced.size());
  const auto tokens = static_cast<int64_t>(importance.size());
  std::vector<double> scores;
  for (int64_t s = 0; s < blocks; ++s) {
    double score = 0;
    for (int64_t i = 0; i <= m + n - 2; ++i) {
      const int64_t j = m * (s + 1) - i;
      const auto weight = static_cast<double>(std::min({i + 1, n, m + n - 1 - i}));
      if (j >= 0 && j < tokens) score += weight * importance[static_cast<size_t>(j)];
    }
    const bool always = forced[static_cast<size_t>(s)];
    scores.push_back(always ? std::numeric_limits<double>::infinity() : score);
  }
  std::vector<bool> left(forced.size(), true);
  for (int64_t i = 0; i < sizes.count; ++i) {
    const int32_t block = selected[i];
    if (i >= blocks ? block != -1 : block < 0 || block >= blocks) {
      return Fail(Text("selected[%d] is %d of %d blocks", static_cast<int>(i), block,
                       static_cast<int>(blocks)));
    }
    if (block < 0) continue;
    const auto at = static_cast<size_t>(block);
    if (!left[at]) return Fail(Text("block %d is selected twice", block));
    left[at] = false;
    for (size_t s = 0; s < scores.size(); ++s) {
      const bool first_of_equals = scores[s] == scores[at] && s < at && std::isinf(scores[s]);
      if (left[s] && (scores[s] > scores[at] + 2 * error || first_of_equals)) {
        return Fail(Text("block %d of score %.9g is selected before block %d of score %.9g", block,
                         scores[at], static_cast<int>(s), scores[s]));
      }
    }
  }
}

}  // namespace nsa::cpu

#endif  // NSA_ONNX_TESTS_CPU_SELECTION_H_
