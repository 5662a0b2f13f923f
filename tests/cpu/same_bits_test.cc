// Same bits from every instruction set, in every split, on any number of threads.
//
//   same_bits [TARGET...]     exit status 0: all agree; 1: not, with the first differences
//
// Each case runs on the scalar kernel and on all targets of this machine (or the named ones, which
// it must have), whole and in parts, between pages that may not be touched, in floating point modes
// that a host might have set. A digest of all results says that this machine's scalar kernel agrees
// with that of the machine where kDigest was written down; tests/test_kernel.py compares it with an
// oracle.
#include <signal.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <numeric>
#include <string>
#include <vector>

#include "cpu/targets.h"
#include "guarded.h"
#include "operators/nsa_compress/c_api.h"
#include "operators/nsa_compress/kernel.h"
#include "operators/nsa_compress_infer/c_api.h"
#include "operators/nsa_compress_infer/kernel.h"
#include "plan/dtype.h"
#include "plan/nsa_compress.h"
#include "plan/nsa_compress_infer.h"
#include "values.h"

namespace nsa::cpu {
namespace {

using compress::PlannedRows;
using compress::RowRun;
using compress_decode::PageRun;
using compress_decode::SlotWrite;

// Of the results of all cases. A change of the cases changes it; a change of a kernel must not.
constexpr uint64_t kDigest = 0x7F38D88B322389D8;

constexpr const char* kDTypeNames[] = {"float16", "bfloat16"};
constexpr int kMostFailuresShown = 10;

// Multiplications and additions of a case at most: what an emulated machine has time for.
constexpr int64_t kWork = 300'000;

// --------------------------------------------------------------------------------------------------
// What is being done, for messages; failures.

char g_doing[1024];
int g_failures = 0;

void Fail(const std::string& what) {
  if (++g_failures <= kMostFailuresShown)
    std::fprintf(stderr, "FAILED %s\n  in %s\n", what.c_str(), g_doing);
}

extern "C" void OnFault(int, siginfo_t* info, void*) {
  // Not strictly allowed in a signal handler, and the process ends here either way.
  std::fprintf(stderr, "FAILED access to memory outside of an array, at %p\n  in %s\n",
               info->si_addr, g_doing);
  _exit(1);
}

void CatchFaults() {
  struct sigaction action = {};
  action.sa_sigaction = OnFault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

template <class... Arguments>
std::string Text(const char* format, Arguments... arguments) {
  char text[512];
  std::snprintf(text, sizeof text, format, arguments...);
  return text;
}

std::string Joined(const std::vector<int64_t>& numbers) {
  std::string text;
  for (const int64_t number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
  return "[" + text + "]";
}

void Doing(const std::string& what, const std::string& how) {
  std::snprintf(g_doing, sizeof g_doing, "%s: %s", what.c_str(), how.c_str());
}

// --------------------------------------------------------------------------------------------------
// The floating point mode of the host's thread.

#if defined(__SSE2__)
using Mode = uint32_t;
constexpr Mode kModes[] = {0x1F80, 0x1F80 | 0x8040 | 0x4000};  // flush to zero, round up
constexpr Mode kStatus = 0x3F;                                 // exceptions that have happened
Mode GetMode() { return _mm_getcsr() & ~kStatus; }
void SetMode(Mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
using Mode = uint64_t;
constexpr Mode kModes[] = {0, 1u << 25 | 1u << 24 | 1u << 22 | 1u << 19};  // default NaN as well
Mode GetMode() {
  Mode mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void SetMode(Mode mode) { asm volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
#else
using Mode = int;
constexpr Mode kModes[] = {0, 0};
Mode GetMode() { return 0; }
void SetMode(Mode) {}
#endif

// Calls `kernel` in the `index`th mode, which it must leave as it was.
template <class Call>
void InMode(size_t index, Call kernel) {
  SetMode(kModes[index % 2]);
  const Mode mode = GetMode();  // without the bits that this processor does not have
  kernel();
  const Mode left = GetMode();
  SetMode(kModes[0]);
  if (left != mode) Fail("the thread's floating point mode was changed");
}

// --------------------------------------------------------------------------------------------------
// One call of an operator: its data, and the kernels' two ways to run it, made alike.

using Array = Guarded<uint16_t>;
using Scratch = Guarded<float>;

// first .. last - 1, with scratch memory of exactly the size that was asked for.
template <class Data, class Kernel>
void RunRange(const Data& data, Kernel kernel, int64_t first, int64_t last, Place place,
              size_t mode) {
  Scratch scratch(ScratchSize(data), place);
  InMode(mode, [&] { kernel(data, first, last, scratch.data()); });
  if (!scratch.SurroundingsUntouched()) Fail("wrote outside of scratch");
}

// The borders of a random split of 0 .. units, empty parts included.
std::vector<int64_t> RandomSplit(int64_t units, Random* random) {
  std::vector<int64_t> borders{0, units};
  for (int64_t i = random->Between(1, 4); i > 0; --i) borders.push_back(random->Between(0, units));
  std::sort(borders.begin(), borders.end());
  return borders;
}

// What all cases share.
struct Case {
  DType dtype;
  Values values;
  int64_t block, stride, heads, dim;
  uint64_t seed;

  std::string Describe(const char* op, const std::string& rest) const {
    return Text("%s %s block %d stride %d N %d D %d %s, %s, seed %d", op,
                kDTypeNames[static_cast<int>(dtype)], static_cast<int>(block),
                static_cast<int>(stride), static_cast<int>(heads), static_cast<int>(dim),
                rest.c_str(), kValueNames[static_cast<int>(values)], static_cast<int>(seed));
  }
};

class Tester {
 public:
  explicit Tester(std::vector<std::string> targets) : targets_(std::move(targets)) {}

  uint64_t digest() const { return digest_; }
  int cases() const { return cases_; }

  // All ways to compute `units` units into `result`, from whose contents `before` the computation
  // starts. `kernel()` is the operator's on the target in use.
  template <class Data, class Kernel>
  void Compare(const std::string& what, Data data, uint16_t* Data::* result, Array* array,
               int64_t units, const std::vector<uint16_t>& before, Kernel kernel, Random* random) {
    const size_t bytes = before.size() * sizeof(uint16_t);
    ++cases_;
    data.*result = array->data();
    std::memcpy(array->data(), before.data(), bytes);
    Doing(what, "scalar, whole");
    SetTarget("scalar");
    RunRange(data, kernel(), 0, units, Place::kAgainstEnd, 0);
    const std::vector<uint16_t> expected(array->data(), array->data() + before.size());
    for (const uint16_t bits : expected) digest_ = (digest_ ^ bits) * 0x100000001B3u;

    for (const std::string& target : targets_) {
      const std::string error = SetTarget(target.c_str());
      if (!error.empty()) Fail(error);
      const auto run = kernel();
      for (const bool split : {false, true}) {
        std::memcpy(array->data(), before.data(), bytes);
        const std::vector<int64_t> borders =
            split ? RandomSplit(units, random) : std::vector<int64_t>{0, units};
        Doing(what, target + ", ranges between " + Joined(borders));
        RunParts(data, run, borders, random);
        ExpectSame(expected, *array, data.heads, data.dim);
        if (!array->SurroundingsUntouched()) Fail("wrote outside of the result");
      }
    }
  }

  // `result` against `expected`, [rows, heads, dim].
  static void ExpectSame(const std::vector<uint16_t>& expected, Array& result, int64_t heads,
                         int64_t dim) {
    for (size_t i = 0; i < expected.size(); ++i) {
      if (result[i] == expected[i]) continue;
      const auto at = static_cast<int64_t>(i);
      Fail(Text("result[%d, %d, %d] is 0x%04X, the scalar kernel gives 0x%04X",
                static_cast<int>(at / dim / heads), static_cast<int>(at / dim % heads),
                static_cast<int>(at % dim), result[i], expected[i]));
      return;
    }
  }

 private:
  template <class Data, class Run>
  void RunParts(const Data& data, Run run, const std::vector<int64_t>& borders, Random* random) {
    std::vector<size_t> order(borders.size() - 1);
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1],
                order[static_cast<size_t>(random->Between(0, static_cast<int64_t>(i) - 1))]);
    }
    for (const size_t part : order) {
      const auto place = static_cast<Place>(random->Between(0, 2));
      RunRange(data, run, borders[part], borders[part + 1], place,
               static_cast<size_t>(random->Between(0, 1)));
    }
  }

  std::vector<std::string> targets_;
  uint64_t digest_ = 0xCBF29CE484222325u;  // FNV-1a
  int cases_ = 0;
};

Place RandomPlace(Random* random) { return static_cast<Place>(random->Between(0, 2)); }

std::vector<uint16_t> RandomBits(size_t size, Random* random) {
  std::vector<uint16_t> bits(size);
  for (uint16_t& element : bits) element = static_cast<uint16_t>(random->Next());
  return bits;
}

// --------------------------------------------------------------------------------------------------
// NsaCompress

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

// N and D whose product stays within `most`.
void RandomHeads(int64_t most, int64_t most_heads, Random* random, Case* c) {
  constexpr int64_t kHeads[] = {1, 1, 2, 3, 4, 5, 7, 8, 16, 33, 63, 128};
  do {
    c->heads = kHeads[random->Between(0, 11)];
    c->dim = 16 * random->Between(1, 16);
  } while (c->heads * c->dim > most || c->heads > most_heads);
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

// --------------------------------------------------------------------------------------------------
// NsaCompressInfer

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
  static void Shuffle(std::vector<int32_t>* numbers, Random* random) {
    for (size_t i = numbers->size(); i > 1; --i) {
      std::swap((*numbers)[i - 1],
                (*numbers)[static_cast<size_t>(random->Between(0, static_cast<int64_t>(i) - 1))]);
    }
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

// --------------------------------------------------------------------------------------------------
// Both operators through the C interface, which starts threads of its own. The inputs are large
// enough for five of them (kBytesWorthAThread in parallel.cc).

template <class Call>
void CompareThreads(const std::string& what, const std::vector<std::string>& targets, Array* result,
                    const std::vector<uint16_t>& before, int64_t heads, int64_t dim, Call call) {
  std::vector<uint16_t> expected;
  char error[512] = "";
  const auto run = [&](const std::string& target, int64_t threads) {
    std::memcpy(result->data(), before.data(), before.size() * sizeof(uint16_t));
    Doing(what, Text("%s, %d threads", target.c_str(), static_cast<int>(threads)));
    int failed = nsa_set_cpu_target(target.c_str(), error, sizeof error);
    InMode(static_cast<size_t>(threads),
           [&] { failed = failed || call(threads, error, sizeof error); });
    if (failed) Fail(error);
    if (!result->SurroundingsUntouched()) Fail("wrote outside of the result");
  };
  run("scalar", 1);
  expected.assign(result->data(), result->data() + before.size());
  for (const std::string& target : targets) {
    for (int64_t threads = 1; threads <= 5; ++threads) {
      run(target, threads);
      Tester::ExpectSame(expected, *result, heads, dim);
    }
  }
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

// --------------------------------------------------------------------------------------------------

std::vector<std::string> SplitNames(const std::string& names) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= names.size();) {
    const size_t end = std::min(names.find(',', begin), names.size());
    parts.push_back(names.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// The targets to test; exits if this machine does not have one that was named.
std::vector<std::string> ChooseTargets(int argc, char** argv) {
  const std::vector<std::string> known = SplitNames(TargetNames());
  if (argc < 2) return known;
  std::vector<std::string> targets(argv + 1, argv + argc);
  for (const std::string& target : targets) {
    if (std::find(known.begin(), known.end(), target) != known.end()) continue;
    std::fprintf(stderr, "FAILED this machine has no target %s, only %s\n", target.c_str(),
                 TargetNames());
    std::exit(1);
  }
  return targets;
}

int Main(int argc, char** argv) {
  const std::vector<std::string> targets = ChooseTargets(argc, argv);
  const auto start = std::chrono::steady_clock::now();
  CatchFaults();
  Tester tester(targets);
  TestAllCompress(&tester);
  TestAllDecode(&tester);
  Doing("all cases", "scalar");
  if (tester.digest() != kDigest) {
    Fail(Text("the scalar kernel gives digest 0x%016" PRIX64 ", not 0x%016" PRIX64
              " as where the cases were written",
              tester.digest(), kDigest));
  }
  // What depends on the size of this machine's memory pages has no part in the digest.
  Tester paged(targets);
  TestOnlyWindowsAreRead(&paged);
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    TestCompressThreads(dtype, targets);
    TestDecodeThreads(dtype, targets);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::string names;
  for (const std::string& target : targets) names += " " + target;
  std::printf("%s:%s; %d cases, %.1f s\n", g_failures ? "DIFFERENT" : "same bits", names.c_str(),
              tester.cases() + paged.cases(), seconds.count());
  return g_failures ? 1 : 0;
}

}  // namespace
}  // namespace nsa::cpu

int main(int argc, char** argv) { return nsa::cpu::Main(argc, argv); }
