// The cases of NsaCompressAttention in the test of the CPU kernels (../same_bits.cc).
#include "plan/nsa_compress_attention.h"

#include "operators/nsa_compress_attention/c_api.h"
#include "operators/nsa_compress_attention/kernel.h"
#include "selection.h"
#include "tester.h"

namespace nsa::cpu {
namespace {

using compress_attention::KernelData;
using compress_attention::Sequence;

enum class Mask { kNone, kCausal, kRandom, kBlocks };

struct PrefillCase {
  DType dtype;
  int64_t kv_heads, group, dim, value_dim;
  Selection sizes;
  Mask atten;
  bool has_topk_mask;
  std::vector<int64_t> rows, tokens;  // of each sequence
  uint64_t seed;

  int64_t heads() const { return kv_heads * group; }
  int64_t all_rows() const { return std::accumulate(rows.begin(), rows.end(), int64_t{0}); }
  int64_t all_tokens() const { return std::accumulate(tokens.begin(), tokens.end(), int64_t{0}); }
  int64_t most_rows() const { return *std::max_element(rows.begin(), rows.end()); }
  int64_t most_tokens() const { return *std::max_element(tokens.begin(), tokens.end()); }
  int64_t blocks(int64_t compressed) const {
    return (compressed * sizes.stride + sizes.select_block - 1) / sizes.select_block;
  }
  std::string Describe() const {
    const auto number = [](int64_t n) { return static_cast<int>(n); };
    return Text("compress attention %s N2 %d G %d D %d Dv %d sizes %d %d %d k %d masks %d %d, ",
                kDTypeNames[static_cast<int>(dtype)], number(kv_heads), number(group), number(dim),
                number(value_dim), number(sizes.block), number(sizes.stride),
                number(sizes.select_block), number(sizes.count), number(int64_t(atten)),
                has_topk_mask) +
           Text("seed %d: rows ", static_cast<int>(seed)) + Joined(rows) + " tokens " +
           Joined(tokens);
  }
};

using Bytes = Guarded<uint8_t>;

struct PrefillArrays {
  PrefillArrays(const PrefillCase& c, Random* random)
      : query(static_cast<size_t>(c.all_rows() * c.heads() * c.dim), RandomPlace(random)),
        key(static_cast<size_t>(c.all_tokens() * c.kv_heads * c.dim), RandomPlace(random)),
        value(static_cast<size_t>(c.all_tokens() * c.kv_heads * c.value_dim), RandomPlace(random)),
        columns(c.most_tokens() + random->Between(0, 3)),
        block_columns(c.blocks(c.most_tokens()) + random->Between(0, 3)),
        atten_mask(static_cast<size_t>(c.most_rows() * columns), RandomPlace(random)),
        topk_mask(static_cast<size_t>(c.most_rows() * block_columns), RandomPlace(random)),
        output(static_cast<size_t>(c.all_rows() * c.heads() * c.value_dim), RandomPlace(random)),
        selected(static_cast<size_t>(c.all_rows() * c.kv_heads * c.sizes.count),
                 RandomPlace(random)) {
    for (Array* array : {&query, &key, &value}) {
      FillFractions(c.dtype, array, random);
      array->MakeReadOnly();
    }
    for (int64_t r = 0; r < c.most_rows(); ++r) {
      const bool nothing = random->OneIn(9);  // a query that sees nothing
      for (int64_t j = 0; j < columns; ++j) {
        bool hidden = nothing || random->OneIn(2);
        if (c.atten == Mask::kCausal) hidden = nothing || j > 3 * r;
        if (c.atten == Mask::kBlocks) hidden = nothing || j / 64 % 2 == r / 8 % 2;
        // Any byte but 0 is true.
        const auto byte = static_cast<uint8_t>(hidden ? random->Between(1, 255) : 0);
        atten_mask[static_cast<size_t>(r * columns + j)] = byte;
      }
    }
    for (size_t i = 0; i < topk_mask.size(); ++i) topk_mask[i] = random->OneIn(5) ? 2 : 0;
    atten_mask.MakeReadOnly();
    topk_mask.MakeReadOnly();
    int64_t row = 0, token = 0;
    for (size_t b = 0; b < c.rows.size(); ++b) {
      plan.push_back({row, c.rows[b], token, c.tokens[b], c.blocks(c.tokens[b])});
      row += c.rows[b];
      token += c.tokens[b];
    }
  }

  Array query, key, value;
  int64_t columns, block_columns;
  Bytes atten_mask, topk_mask;
  Array output;
  Guarded<int32_t> selected;
  std::vector<Sequence> plan;
};

KernelData DataOf(const PrefillCase& c, PrefillArrays* arrays, float scale) {
  return {arrays->query.data(),
          arrays->key.data(),
          arrays->value.data(),
          c.has_topk_mask ? arrays->topk_mask.data() : nullptr,
          c.atten != Mask::kNone ? arrays->atten_mask.data() : nullptr,
          arrays->output.data(),
          arrays->selected.data(),
          arrays->block_columns,
          arrays->columns,
          c.all_rows(),
          c.heads(),
          c.kv_heads,
          c.dim,
          c.value_dim,
          scale,
          c.sizes.block,
          c.sizes.stride,
          c.sizes.select_block,
          c.sizes.count,
          arrays->plan.data(),
          static_cast<int64_t>(arrays->plan.size()),
          compress_attention::MostTokens(arrays->plan)};
}

// The blocks of one query for one key/value head.
void ExpectBlocks(const PrefillCase& c, const KernelData& data, const Sequence& sequence,
                  int64_t query, int64_t kv_head, double error) {
  const auto value = [&](uint16_t bits) { return double{ToFloat(bits, c.dtype)}; };
  const int64_t row = sequence.first_row + query;
  std::vector<double> importance(static_cast<size_t>(sequence.tokens));
  for (int64_t h = 0; h < c.group; ++h) {
    const uint16_t* const q = data.query + (row * c.heads() + kv_head * c.group + h) * c.dim;
    AddProbabilities(
        sequence.tokens,
        [&](int64_t j) {
          if (data.atten_mask != nullptr && data.atten_mask[query * data.atten_pitch + j] != 0) {
            return -3e38;
          }
          const uint16_t* const k =
              data.key + ((sequence.first_token + j) * c.kv_heads + kv_head) * c.dim;
          double sum = 0;
          for (int64_t d = 0; d < c.dim; ++d) sum += value(q[d]) * value(k[d]);
          return sum * double{data.scale};
        },
        &importance);
  }
  std::vector<bool> forced;
  for (int64_t s = 0; s < sequence.blocks; ++s) {
    forced.push_back(data.topk_mask != nullptr && data.topk_mask[query * data.topk_pitch + s] != 0);
  }
  ExpectSelected(c.sizes, importance, forced, error,
                 data.selected + (row * c.kv_heads + kv_head) * c.sizes.count);
}

void TestPrefill(const PrefillCase& c, Tester* tester) {
  Doing(c.Describe(), "preparation");
  Random random(c.seed);
  PrefillArrays arrays(c, &random);
  const float scale = 1 / std::sqrt(static_cast<float>(c.dim));
  const KernelData data = DataOf(c, &arrays, scale);
  const float slack = AttentionSlack(c.dim, c.most_tokens(), scale);
  std::string target;
  std::vector<int32_t> before;
  tester->CompareNear(
      c.Describe(), c.dtype, data, &arrays.output, c.all_rows() * c.kv_heads, c.heads(),
      c.value_dim, slack, [&] { return compress_attention::ActiveKernel(c.dtype); },
      [&] {
        if (!arrays.selected.SurroundingsUntouched()) Fail("wrote outside of selected");
        const std::vector<int32_t> now(data.selected, data.selected + arrays.selected.size());
        if (target == TargetName() && now != before) Fail("selected differs between splits");
        if (target != TargetName()) {
          const double error =
              static_cast<double>(c.group * c.sizes.block / c.sizes.stride) * slack;
          for (const Sequence& sequence : arrays.plan) {
            for (int64_t query = 0; query < sequence.rows; ++query) {
              for (int64_t g = 0; g < c.kv_heads; ++g) {
                ExpectBlocks(c, data, sequence, query, g, error);
              }
            }
          }
        }
        target = TargetName();
        before = now;
        std::fill(data.selected, data.selected + arrays.selected.size(), 77);
      },
      &random);
}

// Rows and tokens of a few sequences, some of them empty.
void RandomSequences(int64_t most_rows, int64_t most_tokens, Random* random, PrefillCase* c) {
  for (int64_t i = random->Between(1, 3); i > 0; --i) {
    c->rows.push_back(random->OneIn(6) ? 0 : random->Between(1, most_rows));
    c->tokens.push_back(random->OneIn(6) ? 0 : random->Between(1, most_tokens));
  }
}

void TestAllPrefill(Tester* tester) {
  Random random(11);
  uint64_t seed = 11000;
  constexpr int64_t kGroups[] = {1, 2, 3, 5, 8, 12, 16, 17, 32, 48, 63, 97, 128};
  const Selection sizes{32, 16, 64, 4};
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const int64_t group : kGroups) {
      for (const Mask mask : {Mask::kNone, Mask::kCausal, Mask::kRandom, Mask::kBlocks}) {
        PrefillCase c{dtype,           0,  group, 0,     0, Selection::RandomOne(&random), mask,
                      random.OneIn(2), {}, {},    ++seed};
        c.kv_heads = random.Between(1, group < 16 ? 3 : 1);
        c.dim = 16 * random.Between(1, group < 16 ? 6 : 2);
        c.value_dim = 16 * random.Between(1, c.dim / 16);
        RandomSequences(group < 16 ? 20 : 3, group < 16 ? 150 : 80, &random, &c);
        TestPrefill(c, tester);
      }
    }
    for (int64_t dim = 16; dim <= 512; dim += 16) {
      const int64_t value_dim = dim % 64 == 0 ? dim : 16 + (dim - 16) / 32 * 16;
      TestPrefill({dtype,
                   1,
                   1 + dim / 16 % 5,
                   dim,
                   value_dim,
                   sizes,
                   Mask::kCausal,
                   false,
                   {3},
                   {20},
                   ++seed},
                  tester);
    }
    // The sizes that models have, long sequences, the largest group and dims.
    TestPrefill({dtype, 1, 16, 192, 128, sizes, Mask::kCausal, true, {8}, {140}, ++seed}, tester);
    TestPrefill({dtype, 1, 1, 16, 16, sizes, Mask::kCausal, true, {2}, {2100}, ++seed}, tester);
    TestPrefill({dtype, 1, 128, 512, 512, sizes, Mask::kNone, false, {1}, {9}, ++seed}, tester);
  }
}

void TestPrefillThreads(DType dtype, const std::vector<std::string>& targets) {
  const PrefillCase c{dtype,         2,    4,           64,           48,   {32, 16, 64, 4},
                      Mask::kCausal, true, {63, 0, 40}, {200, 0, 90}, 11900};
  Random random(c.seed);
  PrefillArrays arrays(c, &random);
  const int64_t query_shape[] = {c.all_rows(), c.heads(), c.dim},
                key_shape[] = {c.all_tokens(), c.kv_heads, c.dim},
                value_shape[] = {c.all_tokens(), c.kv_heads, c.value_dim},
                atten_shape[] = {c.most_rows(), arrays.columns},
                topk_shape[] = {c.most_rows(), arrays.block_columns},
                output_shape[] = {c.all_rows(), c.heads(), c.value_dim},
                selected_shape[] = {c.all_rows(), c.kv_heads, c.sizes.count};
  std::vector<int64_t> ends[3];
  for (const Sequence& sequence : arrays.plan) {
    ends[0].push_back(sequence.first_row + sequence.rows);
    ends[1].push_back(sequence.first_token + sequence.tokens);
    ends[2].push_back((ends[2].empty() ? 0 : ends[2].back()) + sequence.blocks);
  }
  const NsaArray query{arrays.query.data(), query_shape, 3}, key{arrays.key.data(), key_shape, 3},
      value{arrays.value.data(), value_shape, 3}, atten{arrays.atten_mask.data(), atten_shape, 2},
      topk{arrays.topk_mask.data(), topk_shape, 2}, result{arrays.output.data(), output_shape, 3},
      selected{arrays.selected.data(), selected_shape, 3};
  CompareThreads(
      c.Describe(), targets, &arrays.output, std::vector<uint16_t>(arrays.output.size(), 0xFFFF),
      c.heads(), c.value_dim,
      [&](int64_t threads, char* error, int64_t size) {
        return nsa_compress_attention(
            static_cast<int>(dtype), &query, &key, &value, 0.125, c.heads(), c.sizes.block,
            c.sizes.stride, c.sizes.select_block, c.sizes.count, &topk, &atten, ends[0].data(), 3,
            ends[1].data(), 3, ends[2].data(), 3, &result, &selected, threads, error, size);
      },
      /*across=*/false);
}

const Register prefill_test({"NsaCompressAttention", 0xAE48110685EB51E7, TestAllPrefill, nullptr,
                             TestPrefillThreads});

}  // namespace
}  // namespace nsa::cpu
