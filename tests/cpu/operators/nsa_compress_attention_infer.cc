// The cases of NsaCompressAttentionInfer in the test of the CPU kernels (../same_bits.cc).
#include "plan/nsa_compress_attention_infer.h"

#include "operators/nsa_compress_attention_infer/c_api.h"
#include "operators/nsa_compress_attention_infer/kernel.h"
#include "selection.h"
#include "tester.h"

namespace nsa::cpu {
namespace {

using compress_attention_decode::KernelData;
using compress_attention_decode::Sequence;

struct StepCase {
  DType dtype;
  int64_t kv_heads, group, dim, value_dim;
  Selection sizes;
  int64_t page;
  std::vector<int64_t> lengths;
  uint64_t seed;

  int64_t batch() const { return static_cast<int64_t>(lengths.size()); }
  int64_t heads() const { return kv_heads * group; }
  int64_t longest() const { return *std::max_element(lengths.begin(), lengths.end()); }
  int64_t max_pages() const { return (longest() + page - 1) / page; }
  int64_t block_num() const {
    int64_t pages = 1;
    for (const int64_t length : lengths) pages += (length + page - 1) / page;
    return pages;
  }
  int64_t blocks(int64_t tokens) const {
    if (tokens == 0) return 0;
    return ((tokens - 1) * sizes.stride + sizes.block + sizes.select_block - 1) /
           sizes.select_block;
  }
  std::string Describe() const {
    const auto number = [](int64_t n) { return static_cast<int>(n); };
    return Text("compress attention step %s N2 %d G %d D %d Dv %d sizes %d %d %d k %d page %d, ",
                kDTypeNames[static_cast<int>(dtype)], number(kv_heads), number(group), number(dim),
                number(value_dim), number(sizes.block), number(sizes.stride),
                number(sizes.select_block), number(sizes.count), number(page)) +
           Text("seed %d: lengths ", static_cast<int>(seed)) + Joined(lengths);
  }
};

struct StepArrays {
  StepArrays(const StepCase& c, Random* random)
      : query(static_cast<size_t>(c.batch() * c.heads() * c.dim), RandomPlace(random)),
        key(static_cast<size_t>(c.block_num() * c.page * c.kv_heads * c.dim), RandomPlace(random)),
        value(static_cast<size_t>(c.block_num() * c.page * c.kv_heads * c.value_dim),
              RandomPlace(random)),
        output(static_cast<size_t>(c.batch() * c.heads() * c.value_dim), RandomPlace(random)),
        selected(static_cast<size_t>(c.batch() * c.kv_heads * c.sizes.count), RandomPlace(random)),
        table(static_cast<size_t>(c.batch() * c.max_pages()), -1) {
    for (Array* array : {&query, &key, &value}) {
      FillFractions(c.dtype, array, random);
      array->MakeReadOnly();
    }
    std::vector<int64_t> order(static_cast<size_t>(c.block_num()));
    std::iota(order.begin(), order.end(), 0);
    Shuffle(&order, random);
    for (int64_t b = 0; b < c.batch(); ++b) {
      const int64_t length = c.lengths[static_cast<size_t>(b)];
      sequences.push_back({length, c.blocks(length), static_cast<int64_t>(pages.size())});
      for (int64_t p = 0; p * c.page < length; ++p) {
        const int64_t page = order[pages.size()];
        pages.push_back(page);
        table[static_cast<size_t>(b * c.max_pages() + p)] = static_cast<int32_t>(page);
      }
    }
  }

  Array query, key, value, output;
  Guarded<int32_t> selected;
  std::vector<int32_t> table;
  std::vector<Sequence> sequences;
  std::vector<int64_t> pages;
};

KernelData DataOf(const StepCase& c, StepArrays* arrays, float scale) {
  return {arrays->query.data(),
          arrays->key.data(),
          arrays->value.data(),
          arrays->output.data(),
          arrays->selected.data(),
          c.heads(),
          c.kv_heads,
          c.dim,
          c.value_dim,
          scale,
          c.sizes.block,
          c.sizes.stride,
          c.sizes.select_block,
          c.sizes.count,
          c.page,
          arrays->sequences.data(),
          c.batch(),
          arrays->pages.data()};
}

// Units first .. last - 1, the parts of each in a random order.
auto Units(DType dtype, Random* random) {
  return [kernel = compress_attention_decode::ActiveKernel(dtype), random](
             const KernelData& data, int64_t first, int64_t last, float* scratch) {
    for (int64_t unit = first; unit < last; ++unit) {
      const int64_t tokens = data.sequences[unit / data.kv_heads].tokens;
      Scratch memory(UnitSize(data, tokens), RandomPlace(random));
      constexpr int64_t kTokens = compress_attention_decode::kPartTokens;
      std::vector<int64_t> parts(static_cast<size_t>((tokens + kTokens - 1) / kTokens));
      std::iota(parts.begin(), parts.end(), 0);
      Shuffle(&parts, random);
      for (const int64_t part : parts) kernel.part(data, unit, part, memory.data(), scratch);
      kernel.finish(data, unit, memory.data(), scratch);
      if (!memory.SurroundingsUntouched()) Fail("wrote outside of a unit's memory");
    }
  };
}

void ExpectBlocks(const StepCase& c, const KernelData& data, int64_t b, int64_t kv_head,
                  double error) {
  const auto value = [&](uint16_t bits) { return double{ToFloat(bits, c.dtype)}; };
  const Sequence& sequence = data.sequences[b];
  const int32_t* const selected = data.selected + (b * c.kv_heads + kv_head) * c.sizes.count;
  if (sequence.tokens == 0) {
    for (int64_t i = 0; i < c.sizes.count; ++i) {
      if (selected[i] != (i == 0 ? 0 : -1)) Fail("a short sequence does not select block 0");
    }
    return;
  }
  std::vector<double> importance(static_cast<size_t>(sequence.tokens));
  for (int64_t h = 0; h < c.group; ++h) {
    const uint16_t* const q = data.query + (b * c.heads() + kv_head * c.group + h) * c.dim;
    AddProbabilities(
        sequence.tokens,
        [&](int64_t j) {
          const int64_t page = data.pages[sequence.first_page + j / c.page];
          const uint16_t* const k =
              data.key + ((page * c.page + j % c.page) * c.kv_heads + kv_head) * c.dim;
          double sum = 0;
          for (int64_t d = 0; d < c.dim; ++d) sum += value(q[d]) * value(k[d]);
          return sum * double{data.scale};
        },
        &importance);
  }
  std::vector<bool> forced(static_cast<size_t>(sequence.blocks));
  for (int64_t s = 0; s < sequence.blocks; ++s) {
    forced[static_cast<size_t>(s)] = s == 0 || s >= sequence.blocks - 2;
  }
  ExpectSelected(c.sizes, importance, forced, error, selected);
}

void TestStep(const StepCase& c, Tester* tester) {
  Doing(c.Describe(), "preparation");
  Random random(c.seed);
  StepArrays arrays(c, &random);
  const float scale = 1 / std::sqrt(static_cast<float>(c.dim));
  const KernelData data = DataOf(c, &arrays, scale);
  const float slack = AttentionSlack(c.dim, c.longest(), scale);
  std::string target;
  std::vector<int32_t> before;
  tester->CompareNear(
      c.Describe(), c.dtype, data, &arrays.output, c.batch() * c.kv_heads, c.heads(), c.value_dim,
      slack, [&] { return Units(c.dtype, &random); },
      [&] {
        if (!arrays.selected.SurroundingsUntouched()) Fail("wrote outside of selected");
        const std::vector<int32_t> now(data.selected, data.selected + arrays.selected.size());
        if (target == TargetName() && now != before) Fail("selected differs between splits");
        if (target != TargetName()) {
          const double error =
              static_cast<double>(c.group * c.sizes.block / c.sizes.stride) * slack;
          for (int64_t unit = 0; unit < c.batch() * c.kv_heads; ++unit) {
            ExpectBlocks(c, data, unit / c.kv_heads, unit % c.kv_heads, error);
          }
        }
        target = TargetName();
        before = now;
        std::fill(data.selected, data.selected + arrays.selected.size(), 77);
      },
      &random);
}

void TestAllSteps(Tester* tester) {
  Random random(12);
  uint64_t seed = 12000;
  constexpr int64_t kGroups[] = {1, 2, 3, 5, 8, 12, 16, 17, 32, 48, 63, 97, 128};
  const Selection sizes{32, 16, 64, 4};
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const int64_t group : kGroups) {
      for (int64_t i = 0; i < 3; ++i) {
        StepCase c{
            dtype, 0,     group, 0, 0, Selection::RandomOne(&random), 16 * random.Between(1, 8),
            {},    ++seed};
        c.kv_heads = random.Between(1, group < 16 ? 3 : 1);
        c.dim = 16 * random.Between(1, group < 16 ? 6 : 2);
        c.value_dim = 16 * random.Between(1, c.dim / 16);
        for (int64_t b = random.Between(1, 4); b > 0; --b) {
          c.lengths.push_back(random.OneIn(5) ? random.Between(0, 2) : random.Between(1, 150));
        }
        TestStep(c, tester);
      }
    }
    for (int64_t dim = 16; dim <= 512; dim += 16) {
      const int64_t value_dim = dim % 64 == 0 ? dim : 16 + (dim - 16) / 32 * 16;
      TestStep({dtype, 1, 1 + dim / 16 % 5, dim, value_dim, sizes, 16, {20, 0}, ++seed}, tester);
    }
    // The sizes that models have; several parts, the last one short; the largest group and dims.
    TestStep({dtype, 1, 16, 192, 128, sizes, 128, {140, 1}, ++seed}, tester);
    TestStep({dtype, 1, 3, 16, 16, sizes, 48, {2500, 1024, 1025}, ++seed}, tester);
    TestStep({dtype, 1, 128, 512, 512, sizes, 1024, {9}, ++seed}, tester);
  }
}

void TestStepThreads(DType dtype, const std::vector<std::string>& targets) {
  const StepCase c{dtype, 1, 4, 64, 48, {32, 16, 64, 4}, 64, {4000, 100}, 12900};
  Random random(c.seed);
  StepArrays arrays(c, &random);
  const int64_t query_shape[] = {c.batch(), c.heads(), c.dim},
                key_shape[] = {c.block_num(), c.page, c.kv_heads, c.dim},
                value_shape[] = {c.block_num(), c.page, c.kv_heads, c.value_dim},
                table_shape[] = {c.batch(), c.max_pages()},
                output_shape[] = {c.batch(), c.heads(), c.value_dim},
                selected_shape[] = {c.batch(), c.kv_heads, c.sizes.count};
  const NsaArray query{arrays.query.data(), query_shape, 3}, key{arrays.key.data(), key_shape, 4},
      value{arrays.value.data(), value_shape, 4}, table{arrays.table.data(), table_shape, 2},
      result{arrays.output.data(), output_shape, 3},
      selected{arrays.selected.data(), selected_shape, 3};
  CompareThreads(
      c.Describe(), targets, &arrays.output, std::vector<uint16_t>(arrays.output.size(), 0xFFFF),
      c.heads(), c.value_dim,
      [&](int64_t threads, char* error, int64_t size) {
        return nsa_compress_attention_infer(
            static_cast<int>(dtype), &query, &key, &value, 0.125, c.heads(), c.kv_heads,
            c.sizes.select_block, c.sizes.count, c.page, c.sizes.block, c.sizes.stride, &table,
            c.lengths.data(), c.batch(), &result, &selected, threads, error, size);
      },
      /*across=*/false);
}

const Register step_test({"NsaCompressAttentionInfer", 0x8F629C42F1EC10C9, TestAllSteps, nullptr,
                          TestStepThreads});

}  // namespace
}  // namespace nsa::cpu
