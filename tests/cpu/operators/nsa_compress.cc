// The cases of NsaCompress in the test of the CPU kernels (../same_bits.cc).
#include "plan/nsa_compress.h"

#include "operators/nsa_compress/c_api.h"
#include "operators/nsa_compress/kernel.h"
#include "tester.h"

namespace nsa::cpu {
namespace {

using compress::PlannedRows;
using compress::RowRun;

struct CompressCase : Case {
  std::vector<int64_t> ends;  // actual_seq_len

  std::string Describe() const { return Case::Describe("compress", "seq " + Joined(ends)); }
};

struct CompressArrays {
  CompressArrays(const CompressCase& c, Random* random)
      : input(static_cast<size_t>(c.ends.back() * c.heads * c.dim), RandomPlace(random)),
        weight(static_cast<size_t>(c.block * c.heads), RandomPlace(random)) {
    Generator generator(c.dtype, c.values, random);
    generator.Weight(weight.data(), c.block, c.heads);
    generator.Input(input.data(), c.ends.back(), c.heads, c.dim);
    input.MakeReadOnly();
    weight.MakeReadOnly();
  }
  Array input, weight;
};

std::vector<RowRun> Plan(const CompressCase& c) {
  const int64_t input[] = {c.ends.back(), c.heads, c.dim}, weight[] = {c.block, c.heads};
  std::vector<RowRun> plan;
  const std::string error = compress::MakePlan({{input, 3},
                                                {weight, 2},
                                                c.block,
                                                c.stride,
                                                c.ends.data(),
                                                static_cast<int64_t>(c.ends.size())},
                                               &plan);
  if (!error.empty()) Fail(error);
  return plan;
}

compress::KernelData DataOf(const CompressCase& c, CompressArrays* arrays,
                            const std::vector<RowRun>& plan) {
  return {arrays->input.data(),
          arrays->weight.data(),
          nullptr,
          c.heads,
          c.dim,
          c.block,
          c.stride,
          plan.data(),
          static_cast<int64_t>(plan.size())};
}

void TestCompress(const CompressCase& c, Place output_place, Tester* tester) {
  Doing(c.Describe(), "preparation");
  Random random(c.seed);
  CompressArrays arrays(c, &random);
  const std::vector<RowRun> plan = Plan(c);
  const int64_t rows = PlannedRows(plan);
  if (rows == 0) return;
  Array output(static_cast<size_t>(rows * c.heads * c.dim), output_place);
  // No kernel gives this NaN: what is not written is seen.
  const std::vector<uint16_t> before(output.size(), 0xFFFF);
  const auto kernel = [&] { return compress::ActiveKernel(c.dtype); };
  tester->Compare(c.Describe(), DataOf(c, &arrays, plan), &compress::KernelData::output, &output,
                  rows, before, kernel, &random);
}

void TestCompress(const CompressCase& c, Tester* tester) {
  TestCompress(c, static_cast<Place>(c.seed % 3), tester);
}

// Segments from shorter than a window up to several of them, within the budget of kWork.
std::vector<int64_t> RandomSegments(const Case& c, Random* random) {
  const int64_t per_row = c.block * c.heads * c.dim;
  int64_t rows = std::max<int64_t>(1, kWork / per_row);
  std::vector<int64_t> ends;
  int64_t end = 0;
  for (int64_t i = random->Between(1, 4); i > 0 || rows > 1; --i) {
    const int64_t most = std::min<int64_t>(rows, random->OneIn(2) ? 12 : 100);
    const int64_t windows = random->OneIn(5) ? 0 : random->Between(1, most);
    const int64_t tail = random->OneIn(3) ? 0 : random->Between(1, c.stride - 1);
    end += windows == 0 ? std::min(tail, c.block - 1) : c.block + (windows - 1) * c.stride + tail;
    if (end > 0) ends.push_back(end);
    rows -= windows;
    if (i < -2 || (rows < 1 && !ends.empty())) break;
  }
  // The last window, with nothing behind it but what must not be read.
  if (ends.empty() || random->OneIn(2)) ends.push_back(end + c.block);
  return ends;
}

// Elements of a token at most: for long runs of windows, for some windows, for few.
int64_t MostElements(int64_t block, int kind) {
  return kind == 0 ? 64 : kWork / block / (kind == 1 ? 8 : 2);
}

void TestAllCompress(Tester* tester) {
  uint64_t seed = 0;
  Random random(1);
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    // Every block and stride, three kinds of values each.
    for (int64_t block = 16; block <= 128; block += 16) {
      for (int64_t stride = 16; stride <= block; stride += 16) {
        for (int i = 0; i < 3; ++i) {
          ++seed;
          CompressCase c{
              {dtype, static_cast<Values>(seed % kValueKinds), block, stride, 0, 0, seed}, {}};
          RandomHeads(MostElements(block, i), 128, &random, &c);
          c.ends = RandomSegments(c, &random);
          TestCompress(c, tester);
        }
      }
    }
    // Every D, with every kind of values.
    for (int64_t dim = 16; dim <= 256; dim += 16) {
      ++seed;
      CompressCase c{
          {dtype, static_cast<Values>(dim / 16 % kValueKinds), 32, 16, 1 + dim / 16 % 3, dim, seed},
          {}};
      c.ends = {32 + 16 * 3, 32 + 16 * 3 + 40};
      TestCompress(c, tester);
    }
    // Wide tokens, up to the largest N and D.
    const Values kind = Values::kModerate;
    TestCompress({{dtype, kind, 16, 16, 128, 256, ++seed}, {16, 33}}, tester);
    TestCompress({{dtype, kind, 32, 16, 127, 256, ++seed}, {31, 31 + 80}}, tester);
    TestCompress({{dtype, kind, 128, 48, 40, 112, ++seed}, {1, 128 + 2 * 48}}, tester);
    TestCompress({{dtype, kind, 48, 16, 9, 240, ++seed}, {48 + 12 * 16 + 15}}, tester);
    TestCompress({{dtype, kind, 96, 64, 40, 112, ++seed}, {96 + 64}}, tester);
    TestCompress({{dtype, kind, 112, 64, 20, 256, ++seed}, {20, 20 + 112 + 64 + 5}}, tester);
    TestCompress({{dtype, kind, 112, 64, 16, 128, ++seed}, {112 + 3 * 64}}, tester);
    // Many overlapping windows near the border of exact products, which a kernel may look for.
    for (int i = 0; i < 40; ++i) {
      const int64_t block = 64 + 16 * (i % 5), first = block + 16 * 9;
      TestCompress({{dtype, Values::kBorder, block, 16, 1 + i % 3, 32, ++seed},
                    {first, first + block + 16 * 5}},
                   tester);
    }
  }
  // More output than a cache would keep, 2.2 MB, where whole vectors are aligned and where not.
  const int64_t rows = 1100;
  const std::vector<int64_t> wide{32 + 16 * (rows - 1)}, narrow{16 * rows};
  const Values kind = Values::kModerate;
  TestCompress({{DType::kBFloat16, kind, 32, 16, 4, 256, ++seed}, wide}, Place::kAgainstEnd,
               tester);
  TestCompress({{DType::kFloat16, kind, 16, 16, 4, 256, ++seed}, narrow}, Place::kUnaligned,
               tester);
}

void TestCompressThreads(DType dtype, const std::vector<std::string>& targets) {
  const CompressCase c{{dtype, Values::kCancelling, 48, 32, 4, 64, 3000}, {500, 520, 11000}};
  Random random(c.seed);
  CompressArrays arrays(c, &random);
  const int64_t rows = PlannedRows(Plan(c));
  Array output(static_cast<size_t>(rows * c.heads * c.dim), Place::kUnaligned);
  const int64_t input_shape[] = {c.ends.back(), c.heads, c.dim},
                weight_shape[] = {c.block, c.heads}, output_shape[] = {rows, c.heads, c.dim};
  const NsaArray input{arrays.input.data(), input_shape, 3},
      weight{arrays.weight.data(), weight_shape, 2}, result{output.data(), output_shape, 3};
  CompareThreads(c.Describe(), targets, &output, std::vector<uint16_t>(output.size(), 0xFFFF),
                 c.heads, c.dim, [&](int64_t threads, char* error, int64_t size) {
                   return nsa_compress(static_cast<int>(dtype), &input, &weight, c.block, c.stride,
                                       c.ends.data(), static_cast<int64_t>(c.ends.size()), &result,
                                       threads, error, size);
                 });
}

const Register compress_test({"NsaCompress", 0x2B298D7F282F6DE0, TestAllCompress, nullptr,
                              TestCompressThreads});

}  // namespace
}  // namespace nsa::cpu
