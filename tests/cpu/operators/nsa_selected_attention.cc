// The cases of NsaSelectedAttention in the test of the CPU kernels (../same_bits.cc).
#include "plan/nsa_selected_attention.h"

#include "operators/nsa_selected_attention/c_api.h"
#include "operators/nsa_selected_attention/kernel.h"
#include "tester.h"

namespace nsa::cpu {
namespace {

using selected_attention::KernelData;
using selected_attention::Plan;

struct SelectedCase {
  DType dtype;
  int64_t heads, group, dim, value_dim, block, count;
  bool causal;
  std::vector<int64_t> rows, tokens;  // of each sequence
  uint64_t seed;

  int64_t all_rows() const { return std::accumulate(rows.begin(), rows.end(), int64_t{0}); }
  int64_t all_tokens() const { return std::accumulate(tokens.begin(), tokens.end(), int64_t{0}); }
  std::string Describe() const {
    const auto number = [](int64_t n) { return static_cast<int>(n); };
    return Text("selected %s N2 %d G %d D %d Dv %d block %d k %d causal %d, seed %d: rows ",
                kDTypeNames[static_cast<int>(dtype)], number(heads), number(group), number(dim),
                number(value_dim), number(block), number(count), causal, number(int64_t(seed))) +
           Joined(rows) + " tokens " + Joined(tokens);
  }
};

struct SelectedArrays {
  SelectedArrays(const SelectedCase& c, Random* random)
      : query(static_cast<size_t>(c.all_rows() * c.heads * c.group * c.dim), RandomPlace(random)),
        key(static_cast<size_t>(c.all_tokens() * c.heads * c.dim), RandomPlace(random)),
        value(static_cast<size_t>(c.all_tokens() * c.heads * c.value_dim), RandomPlace(random)) {
    for (Array* array : {&query, &key, &value}) {
      FillFractions(c.dtype, array, random);
      array->MakeReadOnly();
    }
    for (size_t b = 0; b < c.rows.size(); ++b) {
      const int64_t blocks = (c.tokens[b] + c.block - 1) / c.block;
      for (int64_t i = 0; i < c.rows[b] * c.heads; ++i) {
        const bool none = random->OneIn(8);  // a row without any block
        for (int64_t j = 0; j < c.count; ++j) {
          const int64_t least = random->OneIn(4) ? -1 : std::min<int64_t>(0, blocks - 1);
          plan.blocks.push_back(none ? -1
                                     : static_cast<int32_t>(random->Between(least, blocks - 1)));
        }
      }
    }
    int64_t row = 0, token = 0;
    for (size_t b = 0; b < c.rows.size(); ++b) {
      plan.sequences.push_back({row, c.rows[b], token, c.tokens[b]});
      row += c.rows[b];
      token += c.tokens[b];
    }
  }
  Array query, key, value;
  Plan plan;
};

void TestSelected(const SelectedCase& c, Tester* tester) {
  Doing(c.Describe(), "preparation");
  Random random(c.seed);
  SelectedArrays arrays(c, &random);
  Array output(static_cast<size_t>(c.all_rows() * c.heads * c.group * c.value_dim),
               RandomPlace(&random));
  const float scale = 1 / std::sqrt(static_cast<float>(c.dim));
  const KernelData data{arrays.query.data(),
                        arrays.key.data(),
                        arrays.value.data(),
                        output.data(),
                        c.all_rows(),
                        c.heads,
                        c.group,
                        c.dim,
                        c.value_dim,
                        c.block,
                        c.count,
                        scale,
                        c.causal,
                        &arrays.plan};
  tester->CompareNear(
      c.Describe(), c.dtype, data, &output, c.all_rows() * c.heads, c.heads * c.group, c.value_dim,
      AttentionSlack(c.dim, c.block * c.count, scale),
      [&] { return selected_attention::ActiveKernel(c.dtype); }, [] {}, &random);
}

// Rows and tokens of a few sequences, some of them empty.
void RandomSequences(int64_t most_rows, int64_t most_tokens, Random* random, SelectedCase* c) {
  for (int64_t i = random->Between(1, 3); i > 0; --i) {
    c->rows.push_back(random->OneIn(6) ? 0 : random->Between(1, most_rows));
    c->tokens.push_back(random->OneIn(6) ? 0 : random->Between(1, most_tokens));
  }
  c->rows.push_back(1);
}

void TestAllSelected(Tester* tester) {
  Random random(5);
  uint64_t seed = 5000;
  constexpr int64_t kGroups[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 24, 31, 33, 64, 65, 128};
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const int64_t group : kGroups) {
      for (const bool causal : {false, true}) {
        SelectedCase c{dtype, 0, group, 0, 0, 0, 0, causal, {}, {}, ++seed};
        c.heads = random.Between(1, group < 16 ? 3 : 1);
        c.dim = 16 * random.Between(1, group < 16 ? 8 : 3);
        c.value_dim = 16 * random.Between(1, c.dim / 16);
        c.block = 16 * random.Between(1, 8);
        c.count = random.Between(1, 4);
        RandomSequences(group < 16 ? 4 : 2, 200, &random, &c);
        c.tokens.push_back(random.Between(1, 200));
        TestSelected(c, tester);
      }
    }
    // Every D, with Dv of every number of vectors.
    for (int64_t dim = 16; dim <= 512; dim += 16) {
      const int64_t value_dim = dim % 64 == 0 ? dim : 16 + (dim - 16) / 32 * 16;
      TestSelected({dtype, 1, 1 + dim / 16 % 5, dim, value_dim, 32, 2, true, {2}, {50}, ++seed},
                   tester);
    }
    // The sizes that models have, and the largest ones.
    TestSelected({dtype, 1, 16, 192, 128, 64, 16, true, {1}, {1000}, ++seed}, tester);
    TestSelected({dtype, 1, 1, 16, 16, 128, 128, false, {2}, {300}, ++seed}, tester);
    TestSelected({dtype, 1, 128, 512, 512, 16, 1, false, {1}, {16}, ++seed}, tester);
  }
}

void TestSelectedThreads(DType dtype, const std::vector<std::string>& targets) {
  const SelectedCase c{dtype, 2, 4, 64, 48, 64, 8, true, {33, 20}, {700, 500}, 5900};
  Random random(c.seed);
  SelectedArrays arrays(c, &random);
  Array output(static_cast<size_t>(c.all_rows() * c.heads * c.group * c.value_dim),
               Place::kUnaligned);
  const int64_t query_heads = c.heads * c.group;
  const int64_t query_shape[] = {c.all_rows(), query_heads, c.dim},
                key_shape[] = {c.all_tokens(), c.heads, c.dim},
                value_shape[] = {c.all_tokens(), c.heads, c.value_dim},
                topk_shape[] = {c.all_rows(), c.heads, c.count},
                output_shape[] = {c.all_rows(), query_heads, c.value_dim},
                query_ends[] = {c.rows[0], c.all_rows()},
                key_ends[] = {c.tokens[0], c.all_tokens()};
  const NsaArray query{arrays.query.data(), query_shape, 3}, key{arrays.key.data(), key_shape, 3},
      value{arrays.value.data(), value_shape, 3}, topk{arrays.plan.blocks.data(), topk_shape, 3},
      result{output.data(), output_shape, 3};
  CompareThreads(
      c.Describe(), targets, &output, std::vector<uint16_t>(output.size(), 0xFFFF), query_heads,
      c.value_dim,
      [&](int64_t threads, char* error, int64_t size) {
        return nsa_selected_attention(static_cast<int>(dtype), &query, &key, &value, &topk, 0.125,
                                      query_heads, c.block, c.count, c.causal, query_ends, 2,
                                      key_ends, 2, &result, threads, error, size);
      },
      /*across=*/false);
}

const Register selected_test({"NsaSelectedAttention", 0x155767E648677F98, TestAllSelected, nullptr,
                              TestSelectedThreads});

}  // namespace
}  // namespace nsa::cpu
