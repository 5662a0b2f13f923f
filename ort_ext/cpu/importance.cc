// See importance.h. A small part of an operator's time, hence in plain C++.
#include "cpu/importance.h"

#include <algorithm>
#include <functional>

#include "cpu/float16.h"

namespace nsa::cpu {
namespace {

// Greater for a higher score, and among equal ones for a lower index: not negative floats are in
// the order of their bits.
uint64_t Rank(float score, size_t index) {
  constexpr uint32_t kInfinity = 0x7F800000;
  const uint32_t bits = FloatBits(score);
  const bool nan = (bits & 0x7FFFFFFF) > kInfinity;
  const uint32_t height = nan ? kInfinity : bits >> 31 ? 0 : bits;
  return uint64_t{height} << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(index));
}

}  // namespace

void ScoreBlocks(const Blocks& sizes, const float* p, size_t tokens, size_t blocks, float* scores) {
  const size_t m = sizes.m, n = sizes.n;
  for (size_t s = 0; s < blocks; ++s) {
    float sum = 0;
    const size_t top = m * (s + 1);
    for (size_t i = 0; i <= m + n - 2 && i <= top; ++i) {
      if (top - i >= tokens) continue;
      const float product = static_cast<float>(std::min({i + 1, n, m + n - 1 - i})) * p[top - i];
      sum += product;
    }
    scores[s] = sum;
  }
}

void SelectBlocks(const float* scores, size_t blocks, size_t count, int32_t* selected) {
  uint64_t order[2 * kMostSelected];
  // Those that may be among the best: when there are twice as many as wanted, half of them go, and
  // `least` is what the next ones must exceed.
  size_t kept = 0;
  uint64_t least = 0;
  const auto keep_best = [&] {
    std::nth_element(order, order + count - 1, order + kept, std::greater<uint64_t>());
    least = order[count - 1];
    kept = count;
  };
  for (size_t s = 0; s < blocks; ++s) {
    const uint64_t rank = Rank(scores[s], s);
    if (rank < least) continue;
    order[kept++] = rank;
    if (kept == 2 * count) keep_best();
  }
  if (kept > count) keep_best();
  std::sort(order, order + kept, std::greater<uint64_t>());
  for (size_t i = 0; i < count; ++i) {
    selected[i] =
        i < kept ? static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(order[i])) : -1;
  }
}

}  // namespace nsa::cpu
