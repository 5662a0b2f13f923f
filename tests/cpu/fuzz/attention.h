// What the attention stages share in the fuzzer: attention of one query head in double, with a
// bound for what float32 may differ by, and what top-k indices must be. Written from
// docs/operators.md alone.
#ifndef NSA_ONNX_TESTS_CPU_FUZZ_ATTENTION_H_
#define NSA_ONNX_TESTS_CPU_FUZZ_ATTENTION_H_

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "fuzzer.h"

namespace nsa::cpu::fuzz {

// A token that a query head attends to.
struct Token {
  const float* key;
  const float* value;
  bool masked;
};

// A float32 number: what it is, and how far a computation in float32 may be from it. Not known
// where it may be NaN, overflow or lie near that: what comes of it then is not judged.
struct Bounded {
  double value = 0;
  double error = 0;
  bool known = true;
};

constexpr double kEpsilon = 0x1p-24;  // half a last place of 1
constexpr double kLarge = 1e36;       // of sums that are far from float32's border

// P of one query head. The order of the sums is not known, so that each term may be rounded as
// often as there are terms.
inline std::vector<Bounded> Probabilities(const float* query, const std::vector<Token>& tokens,
                                          int64_t dim, double scale) {
  const auto count = static_cast<double>(tokens.size());
  const bool sees = std::any_of(tokens.begin(), tokens.end(), [](auto& t) { return !t.masked; });
  std::vector<Bounded> result(tokens.size());
  std::vector<double> logits(tokens.size());
  double largest = -HUGE_VAL, error = 0;
  bool known = true;
  for (size_t j = 0; j < tokens.size(); ++j) {
    if (tokens[j].masked) continue;
    double dot = 0, sum = 0;
    for (int64_t d = 0; d < dim; ++d) {
      const double product = double{query[d]} * tokens[j].key[d];
      dot += product;
      sum += std::fabs(product);
    }
    logits[j] = scale * dot;
    known = known && sum < kLarge && std::fabs(scale) * sum < kLarge;
    largest = std::max(largest, logits[j]);
    // Products below float32's smallest number may be lost, before or after they are scaled.
    error = std::max(error, (static_cast<double>(dim) + 4) * kEpsilon * std::fabs(scale) * sum +
                                static_cast<double>(dim) * 0x1p-120 * (1 + std::fabs(scale)));
  }
  double total = 0;
  for (size_t j = 0; j < tokens.size(); ++j) {
    if (!sees) {
      result[j].value = 1;
    } else if (!tokens[j].masked) {
      result[j].value = std::exp(logits[j] - largest);
    }
    total += result[j].value;
  }
  for (size_t j = 0; j < tokens.size(); ++j) {
    Bounded& p = result[j];
    p.known = known || !sees;
    p.value /= total;
    if (!sees || !tokens[j].masked) {
      const double sizes = sees ? std::fabs(logits[j]) + std::fabs(largest) : 0;
      const double exponent = sees ? 2 * error + (sizes + 16) * kEpsilon : 0;
      p.error = std::min(
          1.0, p.value * (std::expm1(2 * exponent) + 2 * (count + 8) * kEpsilon) + 0x1p-100);
    }
  }
  return result;
}

// out[d] of one query head: the weighted sum of the values.
inline Bounded Output(const std::vector<Bounded>& p, const std::vector<Token>& tokens, int64_t d) {
  Bounded out;
  double sum = 0;
  for (size_t j = 0; j < tokens.size(); ++j) {
    const double value = tokens[j].value[d];
    out.known = out.known && p[j].known && std::isfinite(value);
    out.value += p[j].value * value;
    out.error += 2 * (p[j].error + p[j].value * static_cast<double>(tokens.size() + 4) * kEpsilon) *
                 std::fabs(value);
    sum += std::fabs(value);
  }
  out.known = out.known && sum < kLarge;
  return out;
}

// Where `got` is not `want`, rounded once.
inline std::string Difference(DType dtype, const char* name, const uint16_t* got,
                              const std::vector<Bounded>& want) {
  const Format format(dtype);
  const double place = std::ldexp(1, -format.mantissa - 1);
  const double smallest = std::ldexp(1, -format.bias - format.mantissa);
  const double most = ValueOf(dtype, static_cast<uint16_t>(format.infinity() - 1));
  for (size_t i = 0; i < want.size(); ++i) {
    const double size = std::fabs(want[i].value) + want[i].error;
    if (!want[i].known || size >= most) continue;
    const double is = ValueOf(dtype, got[i]), slack = want[i].error + size * place + smallest;
    if (std::fabs(is - want[i].value) <= slack) continue;
    char text[160];
    std::snprintf(text, sizeof text, "element %zu of %s is %.9g, the oracle has %.9g +- %.3g", i,
                  name, is, want[i].value, slack);
    return text;
  }
  return {};
}

// What is wrong with the k indices of a row: the blocks of highest score, `forced` ones first,
// equal ones by ascending index, -1 behind.
inline std::string WrongRanks(const int32_t* got, int64_t k, const std::vector<Bounded>& scores,
                              const std::vector<bool>& forced) {
  const auto blocks = static_cast<int64_t>(scores.size());
  const int64_t count = std::min(k, blocks);
  std::vector<bool> chosen(scores.size());
  for (int64_t i = 0; i < k; ++i) {
    if (i >= count ? got[i] != -1 : got[i] < 0 || got[i] >= blocks) {
      return "index " + std::to_string(i) + " of " + std::to_string(blocks) + " blocks is " +
             std::to_string(got[i]);
    }
    if (i >= count) continue;
    if (chosen[static_cast<size_t>(got[i])]) return "block " + std::to_string(got[i]) + " twice";
    chosen[static_cast<size_t>(got[i])] = true;
  }
  for (const Bounded& score : scores) {
    if (!score.known) return {};
  }
  int64_t next = 0;  // the next forced block
  const auto at = [](int32_t index) { return static_cast<size_t>(index); };
  for (int64_t i = 0; i < count; ++i) {
    while (next < blocks && !forced[static_cast<size_t>(next)]) ++next;
    if (next < blocks) {
      if (got[i] != next) return "block " + std::to_string(next) + " is not where it must be";
      ++next;
      continue;
    }
    const Bounded& score = scores[at(got[i])];
    for (int64_t s = 0; s < blocks; ++s) {
      const bool before = std::find(got, got + i, static_cast<int32_t>(s)) != got + i;
      const Bounded& other = scores[static_cast<size_t>(s)];
      if (!before && other.value - other.error > score.value + score.error) {
        return "block " + std::to_string(got[i]) + " stands before " + std::to_string(s);
      }
    }
  }
  return {};
}

// score[s] of a group: what its heads' P give the compressed tokens of each block. `m` and `n` are
// select_block_size and compress_block_size in strides.
inline std::vector<Bounded> Scores(const std::vector<std::vector<Bounded>>& heads, int64_t blocks,
                                   int64_t m, int64_t n) {
  std::vector<Bounded> scores(static_cast<size_t>(blocks));
  const double terms = static_cast<double>(heads.size()) * static_cast<double>(m + n) + 4;
  for (int64_t s = 0; s < blocks; ++s) {
    Bounded& score = scores[static_cast<size_t>(s)];
    for (const std::vector<Bounded>& p : heads) {
      for (int64_t i = 0; i <= m + n - 2; ++i) {
        const int64_t j = m * (s + 1) - i;
        if (j < 0 || j >= static_cast<int64_t>(p.size())) continue;
        const Bounded& one = p[static_cast<size_t>(j)];
        const auto weight = static_cast<double>(std::min({i + 1, n, m + n - 1 - i}));
        score.value += weight * one.value;
        score.error += weight * (one.error + 2 * terms * kEpsilon * one.value);
        score.known = score.known && one.known;
      }
    }
  }
  return scores;
}

// A multiple of 16 in [16, most], small ones more often.
inline int64_t Multiple(int64_t most, Random* random) {
  return 16 * random->Between(1, random->OneIn(3) ? most / 16 : std::min<int64_t>(2, most / 16));
}

inline bool IsMultiple(int64_t number, int64_t most) {
  return number % 16 == 0 && number >= 16 && number <= most;
}

inline double Scale(int64_t dim, Random* random) {
  return OneOf<double>({1 / std::sqrt(static_cast<double>(dim)), 1, 0.01, 0, -0.25}, random);
}

inline double BadScale(Random* random) {
  return OneOf<double>({HUGE_VAL, -HUGE_VAL, 1e39, std::nan("")}, random);
}

inline bool IsFloat32(double scale) {
  return std::fabs(scale) <= double{std::numeric_limits<float>::max()};
}

// Prefix sums of random lengths up to `most`, empty ones among them.
inline std::vector<int64_t> PrefixSums(int64_t count, int64_t most, Random* random) {
  std::vector<int64_t> ends;
  for (int64_t end = 0; count > 0; --count) {
    end += random->OneIn(4) ? 0 : random->Between(0, most);
    ends.push_back(end);
  }
  return ends;
}

inline bool ArePrefixSums(const std::vector<int64_t>& ends, int64_t total) {
  return !ends.empty() && ends.front() >= 0 && std::is_sorted(ends.begin(), ends.end()) &&
         ends.back() == total;
}

inline int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The elements of an array for a case, and their values.
struct Data {
  Data(DType dtype, Values kind, const Dims& dims, Random* random)
      : bits(static_cast<size_t>(Elements(dims))) {
    int64_t tokens = 1;
    for (size_t i = 0; i + 2 < dims.size(); ++i) tokens *= dims[i];
    Generator generator(dtype, kind, random);
    if (!bits.empty()) generator.Input(bits.data(), tokens, dims[dims.size() - 2], dims.back());
    values = ValuesOf(dtype, bits);
  }
  std::vector<uint16_t> bits;
  std::vector<float> values;
};

}  // namespace nsa::cpu::fuzz

#endif  // NSA_ONNX_TESTS_CPU_FUZZ_ATTENTION_H_
