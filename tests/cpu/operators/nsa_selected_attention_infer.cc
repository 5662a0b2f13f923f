// The cases of NsaSelectedAttentionInfer in the test of the CPU kernels (../same_bits.cc).
#include "plan/nsa_selected_attention_infer.h"

#include <unistd.h>

#include "operators/nsa_selected_attention_infer/c_api.h"
#include "operators/nsa_selected_attention_infer/kernel.h"
#include "tester.h"

namespace nsa::cpu {
namespace {

using selected_attention_decode::KernelData;
using selected_attention_decode::Plan;

struct SelectedDecodeCase {
  DType dtype;
  int64_t heads, group, dim, value_dim, block, count, page;
  std::vector<int64_t> lengths;
  uint64_t seed;

  int64_t batch() const { return static_cast<int64_t>(lengths.size()); }
  int64_t max_pages() const {
    return (*std::max_element(lengths.begin(), lengths.end()) + page - 1) / page;
  }
  int64_t block_num() const { return batch() * max_pages(); }
  std::string Describe() const {
    const auto number = [](int64_t n) { return static_cast<int>(n); };
    return Text("selected infer %s N2 %d G %d D %d Dv %d block %d k %d page %d, seed %d: lengths ",
                kDTypeNames[static_cast<int>(dtype)], number(heads), number(group), number(dim),
                number(value_dim), number(block), number(count), number(page),
                number(int64_t(seed))) +
           Joined(lengths);
  }
};

struct SelectedDecodeArrays {
  SelectedDecodeArrays(const SelectedDecodeCase& c, Place place, Random* random)
      : query(static_cast<size_t>(c.batch() * c.heads * c.group * c.dim), RandomPlace(random)),
        key(static_cast<size_t>(c.block_num() * c.page * c.heads * c.dim), place),
        value(static_cast<size_t>(c.block_num() * c.page * c.heads * c.value_dim), place) {
    for (Array* array : {&query, &key, &value}) FillFractions(c.dtype, array, random);
    table.resize(static_cast<size_t>(c.block_num()));
    std::iota(table.begin(), table.end(), 0);
    Shuffle(&table, random);
    for (const int64_t length : c.lengths) {
      const int64_t blocks = (length + c.block - 1) / c.block;
      for (int64_t i = 0; i < c.heads; ++i) {
        const bool none = random->OneIn(8);
        for (int64_t j = 0; j < c.count; ++j) {
          const int64_t least = random->OneIn(4) ? -1 : std::min<int64_t>(0, blocks - 1);
          topk.push_back(none ? -1 : static_cast<int32_t>(random->Between(least, blocks - 1)));
        }
      }
    }
  }
  Array query, key, value;
  std::vector<int32_t> table, topk;
};

// The shapes that calls point to.
struct SelectedDecodeShapes {
  explicit SelectedDecodeShapes(const SelectedDecodeCase& c)
      : query{c.batch(), c.heads * c.group, c.dim},
        key{c.block_num(), c.page, c.heads, c.dim},
        value{c.block_num(), c.page, c.heads, c.value_dim},
        topk{c.batch(), c.heads, c.count},
        table{c.batch(), c.max_pages()},
        output{c.batch(), c.heads * c.group, c.value_dim} {}
  int64_t query[3], key[4], value[4], topk[3], table[2], output[3];
};

Plan MadePlan(const SelectedDecodeCase& c, const SelectedDecodeArrays& arrays) {
  const SelectedDecodeShapes shapes(c);
  AttentionAttributes attributes{0.5, c.heads * c.group, c.block, c.count};
  attributes.kv_heads = c.heads;
  attributes.page = c.page;
  Plan plan;
  const std::string error = selected_attention_decode::MakePlan({{shapes.query, 3},
                                                                 {shapes.key, 4},
                                                                 {shapes.value, 4},
                                                                 {shapes.topk, 3},
                                                                 {shapes.table, 2},
                                                                 attributes,
                                                                 arrays.topk.data(),
                                                                 arrays.table.data(),
                                                                 {c.lengths.data(), c.batch()}},
                                                                &plan);
  if (!error.empty()) Fail(error);
  return plan;
}

// With `only_selected`, pages of memory without a selected token cannot be read.
void TestSelectedDecode(const SelectedDecodeCase& c, bool only_selected, Tester* tester) {
  Doing(c.Describe(), "preparation");
  Random random(c.seed);
  SelectedDecodeArrays arrays(c, only_selected ? Place::kAgainstStart : RandomPlace(&random),
                              &random);
  const Plan plan = MadePlan(c, arrays);
  if (only_selected) {
    arrays.key.Forbid();
    arrays.value.Forbid();
    for (const auto& run : plan.runs) {
      const auto allow = [&](Array* array, int64_t pitch) {
        array->Allow(static_cast<size_t>(run.first * pitch),
                     static_cast<size_t>((run.first + run.tokens) * pitch));
      };
      allow(&arrays.key, c.heads * c.dim);
      allow(&arrays.value, c.heads * c.value_dim);
    }
  }
  Array output(static_cast<size_t>(c.batch() * c.heads * c.group * c.value_dim),
               RandomPlace(&random));
  const float scale = 1 / std::sqrt(static_cast<float>(c.dim));
  KernelData data{arrays.query.data(),
                  arrays.key.data(),
                  arrays.value.data(),
                  output.data(),
                  c.batch(),
                  c.heads,
                  c.group,
                  c.dim,
                  c.value_dim,
                  c.block,
                  c.count,
                  scale,
                  &plan,
                  nullptr};
  Scratch parts(PartsSize(data), RandomPlace(&random));
  data.parts = parts.data();
  const int64_t units = c.batch() * c.heads;
  const bool divided = PartCount(data) > 1;
  const auto combine = [&] {
    if (!divided) return;
    const auto kernel = selected_attention_decode::ActiveKernels(c.dtype).combine;
    RunRange(data, kernel, 0, units, RandomPlace(&random), 1);
    if (!parts.SurroundingsUntouched()) Fail("wrote outside of the parts");
  };
  tester->CompareNear(
      c.Describe(), c.dtype, data, &output, units * PartCount(data), c.heads * c.group, c.value_dim,
      AttentionSlack(c.dim, c.block * c.count, scale),
      [&] { return selected_attention_decode::ActiveKernels(c.dtype).attend; }, combine, &random);
}

void TestAllSelectedDecode(Tester* tester) {
  Random random(6);
  uint64_t seed = 6000;
  constexpr int64_t kGroups[] = {1, 2, 4, 7, 8, 16, 20, 40, 128};
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const int64_t group : kGroups) {
      for (const int64_t page : {16, 48, 64, 128, 1024}) {
        SelectedDecodeCase c{dtype, 0, group, 0, 0, 0, 0, page, {}, ++seed};
        c.heads = random.Between(1, group < 16 ? 3 : 1);
        c.dim = 16 * random.Between(1, group < 16 ? 6 : 2);
        c.value_dim = 16 * random.Between(1, c.dim / 16);
        c.block = 16 * random.Between(1, 8);
        c.count = random.Between(1, 6);
        for (int64_t i = random.Between(0, 3); i > 0; --i) {
          c.lengths.push_back(random.OneIn(6) ? 0 : random.Between(1, 300));
        }
        c.lengths.push_back(random.Between(1, 300));
        TestSelectedDecode(c, false, tester);
      }
    }
    // So many blocks that they are divided, between few sequences.
    TestSelectedDecode({dtype, 1, 16, 192, 128, 64, 16, 64, {1500}, ++seed}, false, tester);
    TestSelectedDecode({dtype, 2, 3, 32, 16, 16, 128, 16, {500, 0, 999}, ++seed}, false, tester);
    TestSelectedDecode({dtype, 1, 1, 16, 16, 128, 128, 128, {200}, ++seed}, false, tester);
  }
}

// 16 tokens fill whole pages of memory: every border of what is selected is one of them.
void TestOnlySelectedTokensAreRead(Tester* tester) {
  const int64_t dim = 128, heads = sysconf(_SC_PAGESIZE) / (16 * dim * 2);
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    TestSelectedDecode({dtype, heads, 2, dim, dim, 48, 3, 64, {320, 160}, 6900}, true, tester);
  }
}

void TestSelectedDecodeThreads(DType dtype, const std::vector<std::string>& targets) {
  const SelectedDecodeCase c{dtype, 1, 5, 128, 64, 64, 32, 64, {3000, 2500}, 6901};
  Random random(c.seed);
  SelectedDecodeArrays arrays(c, Place::kUnaligned, &random);
  const SelectedDecodeShapes shapes(c);
  Array output(static_cast<size_t>(c.batch() * c.heads * c.group * c.value_dim), Place::kUnaligned);
  const NsaArray query{arrays.query.data(), shapes.query, 3}, key{arrays.key.data(), shapes.key, 4},
      value{arrays.value.data(), shapes.value, 4}, topk{arrays.topk.data(), shapes.topk, 3},
      table{arrays.table.data(), shapes.table, 2}, result{output.data(), shapes.output, 3};
  CompareThreads(
      c.Describe(), targets, &output, std::vector<uint16_t>(output.size(), 0xFFFF),
      c.heads * c.group, c.value_dim,
      [&](int64_t threads, char* error, int64_t size) {
        return nsa_selected_attention_infer(static_cast<int>(dtype), &query, &key, &value, &topk,
                                            0.125, c.heads * c.group, c.heads, c.block, c.count,
                                            c.page, &table, c.lengths.data(), c.batch(), &result,
                                            threads, error, size);
      },
      /*across=*/false);
}

const Register selected_decode_test({"NsaSelectedAttentionInfer", 0x81EB050F88850D3E,
                                     TestAllSelectedDecode, TestOnlySelectedTokensAreRead,
                                     TestSelectedDecodeThreads});

}  // namespace
}  // namespace nsa::cpu
