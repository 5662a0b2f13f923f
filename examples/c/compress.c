// Compresses two sequences in C, without onnxruntime. docs/cpp.md has the command that builds it.
//
// Token t holds the number t everywhere and all weights are 1/32: each window becomes the mean of
// its tokens' numbers, and that is what is printed.
#include <nsa_onnx.h>
#include <stdio.h>
#include <string.h>

enum { TOKENS = 128, HEADS = 4, DIM = 64, BLOCK = 32, STRIDE = 16 };

// There are never more windows than tokens.
static uint16_t input[TOKENS][HEADS][DIM], weight[BLOCK][HEADS], output[TOKENS][HEADS][DIM];

// A bfloat16 is the upper half of a float; all numbers here fit into it.
static uint16_t to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (uint16_t)(bits >> 16);
}

static float from_bfloat16(uint16_t half) {
  const uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

int main(void) {
  const int64_t ends[] = {40, 128};  // two sequences, of 40 and 88 tokens
  const int64_t windows = (1 + (40 - BLOCK) / STRIDE) + (1 + (88 - BLOCK) / STRIDE);

  for (int t = 0; t < TOKENS; ++t) {
    for (int i = 0; i < HEADS * DIM; ++i) input[t][i / DIM][i % DIM] = to_bfloat16((float)t);
  }
  for (int i = 0; i < BLOCK * HEADS; ++i) weight[i / HEADS][i % HEADS] = to_bfloat16(1.0f / 32);

  const int64_t input_shape[] = {TOKENS, HEADS, DIM};
  const int64_t weight_shape[] = {BLOCK, HEADS};
  const int64_t output_shape[] = {windows, HEADS, DIM};
  const NsaArray x = {input, input_shape, 3};
  const NsaArray w = {weight, weight_shape, 2};
  const NsaArray y = {output, output_shape, 3};
  char error[512];
  if (nsa_compress(NSA_BFLOAT16, &x, &w, BLOCK, STRIDE, ends, 2, &y, 1, error, sizeof error)) {
    fprintf(stderr, "%s\n", error);
    return 1;
  }
  for (int64_t i = 0; i < windows; ++i) printf("%g\n", from_bfloat16(output[i][0][0]));
  return 0;
}
