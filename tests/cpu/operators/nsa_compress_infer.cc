// The cases of NsaCompressInfer in the test of the CPU kernels (../same_bits.cc).
#include "plan/nsa_compress_infer.h"

#include <unistd.h>

#include "operators/nsa_compress_infer/c_api.h"
#include "operators/nsa_compress_infer/kernel.h"
#include "tester.h"

namespace nsa::cpu {
namespace {

using compress_decode::PageRun;
using compress_decode::SlotWrite;

struct DecodeCase : Case {
  int64_t page;
  std::vector<int64_t> lengths;  // actual_seq_len
  bool has_table;

  int64_t batch() const { return static_cast<int64_t>(lengths.size()); }
  int64_t max_pages() const {
    return (*std::max_element(lengths.begin(), lengths.end()) + page - 1) / page;
  }
  int64_t block_num() const { return batch() * max_pages(); }
  int64_t slots() const { return batch() + 2; }
  std::string Describe() const {
    return Case::Describe(
        "infer", Text("page %d%s lengths ", static_cast<int>(page), has_table ? " table" : "") +
                     Joined(lengths));
  }
};

struct DecodeArrays {
  DecodeArrays(const DecodeCase& c, Place place, Random* random)
      : input(static_cast<size_t>(c.block_num() * c.page * c.heads * c.dim), place),
        weight(static_cast<size_t>(c.block * c.heads), RandomPlace(random)) {
    Generator generator(c.dtype, c.values, random);
    generator.Weight(weight.data(), c.block, c.heads);
    generator.Input(input.data(), c.block_num() * c.page, c.heads, c.dim);
    weight.MakeReadOnly();
    slot_mapping.resize(static_cast<size_t>(c.slots()));
    std::iota(slot_mapping.begin(), slot_mapping.end(), 0);
    Shuffle(&slot_mapping, random);
    slot_mapping.resize(static_cast<size_t>(c.batch()));
    table.resize(static_cast<size_t>(c.block_num()));
    std::iota(table.begin(), table.end(), 0);
    Shuffle(&table, random);
  }
  Array input, weight;
  std::vector<int32_t> slot_mapping, table;
};

// The shapes that calls point to.
struct DecodeShapes {
  explicit DecodeShapes(const DecodeCase& c)
      : input{c.block_num(), c.page, c.heads, c.dim},
        weight{c.block, c.heads},
        slots{c.batch()},
        cache{c.slots(), c.heads, c.dim},
        table{c.batch(), c.max_pages()} {}
  int64_t input[4], weight[2], slots[1], cache[3], table[2];
};

std::vector<SlotWrite> Plan(const DecodeCase& c, const DecodeArrays& arrays) {
  const DecodeShapes shapes(c);
  std::vector<SlotWrite> plan;
  const std::string error = compress_decode::MakePlan({{shapes.input, 4},
                                                       {shapes.weight, 2},
                                                       {shapes.slots, 1},
                                                       {shapes.cache, 3},
                                                       {shapes.table, c.has_table ? 2 : 0},
                                                       c.block,
                                                       c.stride,
                                                       c.page,
                                                       arrays.slot_mapping.data(),
                                                       c.has_table ? arrays.table.data() : nullptr,
                                                       c.lengths.data(),
                                                       c.batch(),
                                                       c.has_table},
                                                      &plan);
  if (!error.empty()) Fail(error);
  return plan;
}

compress_decode::KernelData DataOf(const DecodeCase& c, DecodeArrays* arrays,
                                   const std::vector<SlotWrite>& plan) {
  return {arrays->input.data(),
          arrays->weight.data(),
          nullptr,
          c.heads,
          c.dim,
          c.block,
          c.page,
          plan.data(),
          static_cast<int64_t>(plan.size())};
}

// With `only_windows`, pages of memory without a token of a window cannot be read.
void TestDecode(const DecodeCase& c, bool only_windows, Tester* tester) {
  Doing(c.Describe(), "preparation");
  Random random(c.seed);
  DecodeArrays arrays(c, only_windows ? Place::kAgainstStart : RandomPlace(&random), &random);
  const std::vector<SlotWrite> plan = Plan(c, arrays);
  const int64_t pitch = c.heads * c.dim;
  if (only_windows) {
    arrays.input.Forbid();
    for (const SlotWrite& write : plan) {
      for (int64_t i = 0; i < write.run_count; ++i) {
        const PageRun& run = write.runs[i];
        const int64_t token = run.page * c.page + run.offset;
        arrays.input.Allow(static_cast<size_t>(token * pitch),
                           static_cast<size_t>((token + run.tokens) * pitch));
      }
    }
  } else {
    arrays.input.MakeReadOnly();
  }
  Array cache(static_cast<size_t>(c.slots() * pitch), RandomPlace(&random));
  const std::vector<uint16_t> before = RandomBits(cache.size(), &random);
  const auto kernel = [&] { return compress_decode::ActiveKernel(c.dtype); };
  tester->Compare(c.Describe(), DataOf(c, &arrays, plan), &compress_decode::KernelData::cache,
                  &cache, static_cast<int64_t>(plan.size()) * c.heads, before, kernel, &random);
}

std::vector<int64_t> RandomLengths(const Case& c, int64_t page, Random* random) {
  std::vector<int64_t> lengths;
  for (int64_t i = random->Between(1, 4); i > 0; --i) {
    const int64_t windows = random->Between(0, 2 * page / c.stride);
    lengths.push_back(random->OneIn(5) ? random->Between(0, page) : c.block + windows * c.stride);
  }
  lengths.push_back(2 * page + c.block % page);  // makes three pages
  lengths.back() -= (lengths.back() - c.block) % c.stride;
  return lengths;
}

void TestAllDecode(Tester* tester) {
  uint64_t seed = 1000;
  Random random(2);
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (int64_t block = 16; block < 128; block += 16) {
      for (const int64_t page : {64, 128}) {
        for (int i = 0; i < 4; ++i) {
          ++seed;
          const int64_t stride = 16 * random.Between(1, block / 16);
          DecodeCase c{{dtype, static_cast<Values>(seed % kValueKinds), block, stride, 0, 0, seed},
                       page,
                       {},
                       i % 2 == 0};
          RandomHeads(i == 0 ? 512 : 128, 63, &random, &c);
          c.lengths = RandomLengths(c, page, &random);
          TestDecode(c, false, tester);
        }
      }
    }
    for (int64_t dim = 16; dim <= 256; dim += 16) {
      ++seed;
      TestDecode({{dtype, static_cast<Values>(dim / 16 % kValueKinds), 48, 16, 1 + dim / 16 % 2,
                   dim, seed},
                  64,
                  {48, 64},
                  true},
                 false, tester);
    }
    TestDecode({{dtype, Values::kModerate, 16, 16, 63, 256, ++seed}, 64, {16}, true}, false,
               tester);
  }
}

// 16 tokens fill whole pages of memory: a window's border is one of them.
void TestOnlyWindowsAreRead(Tester* tester) {
  const int64_t dim = 128, heads = sysconf(_SC_PAGESIZE) / (16 * dim * 2);
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    const Case base{dtype, Values::kModerate, 112, 16, heads, dim, 2000};
    TestDecode({base, 64, {112, 160, 128 + 48, 120}, true}, true, tester);
  }
}

void TestDecodeThreads(DType dtype, const std::vector<std::string>& targets) {
  const DecodeCase c{
      {dtype, Values::kCancelling, 48, 16, 15, 256, 3001}, 64, std::vector<int64_t>(16, 64), true};
  Random random(c.seed);
  DecodeArrays arrays(c, Place::kUnaligned, &random);
  arrays.input.MakeReadOnly();
  const DecodeShapes shapes(c);
  Array slots(static_cast<size_t>(c.slots() * c.heads * c.dim), Place::kUnaligned);
  const NsaArray input{arrays.input.data(), shapes.input, 4},
      weight{arrays.weight.data(), shapes.weight, 2},
      slot_mapping{arrays.slot_mapping.data(), shapes.slots, 1},
      table{arrays.table.data(), shapes.table, 2}, cache{slots.data(), shapes.cache, 3};
  CompareThreads(c.Describe(), targets, &slots, RandomBits(slots.size(), &random), c.heads, c.dim,
                 [&](int64_t threads, char* error, int64_t size) {
                   return nsa_compress_infer(
                       static_cast<int>(dtype), &input, &weight, &slot_mapping, c.block, c.stride,
                       c.page, &table, c.lengths.data(), c.batch(), &cache, threads, error, size);
                 });
}

const Register decode_test({"NsaCompressInfer", 0x61EE2EED5CE958AD, TestAllDecode,
                            TestOnlyWindowsAreRead, TestDecodeThreads});

}  // namespace
}  // namespace nsa::cpu
