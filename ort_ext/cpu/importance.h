// Which blocks of tokens a query selects: the importance of blocks, from the probabilities of the
// compressed tokens, and the blocks of greatest importance.
#ifndef NSA_ONNX_ORT_EXT_CPU_IMPORTANCE_H_
#define NSA_ONNX_ORT_EXT_CPU_IMPORTANCE_H_

#include <cstddef>
#include <cstdint>

namespace nsa::cpu {

// A block begins every `m` compressed tokens, and each of these covers `n` strides of tokens.
struct Blocks {
  size_t m;  // select_block_size / compress_stride
  size_t n;  // compress_block_size / compress_stride
};

// scores[s] = sum over i in 0 .. m + n - 2 of min(i + 1, n, m + n - 1 - i) * p[m * (s + 1) - i],
// in this order; p outside of its `tokens` elements is 0. Tokens in blocks: 0 .. blocks - 1.
void ScoreBlocks(const Blocks& sizes, const float* p, size_t tokens, size_t blocks, float* scores);

constexpr size_t kMostSelected = 128;

// The `count` blocks, at most kMostSelected, of the highest of `blocks` scores: highest first,
// equal ones by ascending index, then -1. NaN counts as infinity; no score is negative.
void SelectBlocks(const float* scores, size_t blocks, size_t count, int32_t* selected);

}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_IMPORTANCE_H_
