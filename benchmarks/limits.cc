// What the machine can do, for the benchmarks: how fast memory is read and copied, and how fast it
// multiplies and adds, with the threads and the instruction set that the kernels get.
//
// A function that measures starts its threads, lets them go together and returns the seconds until
// the last one is done: starting threads is not in it. Like the kernels' own (cpu/parallel.cc) they
// are not tied to cores. Used through ctypes by benchmarks/limits.py; no part of the product.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "limits.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#ifndef NSA_ONNX_BENCHMARKS_LIMITS_CC_
#define NSA_ONNX_BENCHMARKS_LIMITS_CC_
namespace nsa::bench {

// Where a software prefetch brings what it fetches.
enum Hint { kNone, kFirstLevel, kSecondLevel, kPastTheCaches, kHints };

// Ways to cut what is read into streams, of which a piece each is read in turn: 1, 2, 4 or 8.
constexpr size_t kSplits = 4;

// The sum, modulo 2^32, of the little-endian 32-bit words: proof that all was read. `ahead`: bytes
// that the software prefetch runs before the reading.
using ReadFunction = uint32_t (*)(const uint8_t* from, size_t size, size_t ahead);

struct Functions {
  // With vectors as long as the kernels', and half as long.
  ReadFunction read[2][kSplits][kHints];
  // `turns` times kChains fused multiply-adds of whole vectors; returns the lanes of one.
  size_t (*multiply_add)(size_t turns, float* result);
};

// Twelve chains that do not wait for one another: two units of four cycles' latency need eight, and
// with the operands they still fit the sixteen registers of SSE and AVX2.
constexpr size_t kChains = 12;

}  // namespace nsa::bench
#endif  // NSA_ONNX_BENCHMARKS_LIMITS_CC_

HWY_BEFORE_NAMESPACE();
namespace nsa::bench::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// As long as the kernels' vectors.
using DF = hn::CappedTag<float, 16>;

template <int kHint>
HWY_INLINE void Prefetch(const uint8_t* from) {
  if constexpr (kHint == kFirstLevel) __builtin_prefetch(from, 0, 3);
  if constexpr (kHint == kSecondLevel) __builtin_prefetch(from, 0, 2);
  if constexpr (kHint == kPastTheCaches) __builtin_prefetch(from, 0, 0);
}

// One stream's piece, whose sums are independent: four vectors.
template <class DU>
HWY_INLINE hn::Vec<DU> Piece(DU du, const uint8_t* from) {
  const size_t lanes = hn::Lanes(du);
  const uint32_t* words = reinterpret_cast<const uint32_t*>(from);
  const auto a = hn::Add(hn::LoadU(du, words), hn::LoadU(du, words + lanes));
  const auto b = hn::Add(hn::LoadU(du, words + 2 * lanes), hn::LoadU(du, words + 3 * lanes));
  return hn::Add(a, b);
}

template <class DU, int kSplit, int kHint>
uint32_t Read(const uint8_t* from, size_t size, size_t ahead) {
  constexpr size_t kStreams = size_t{1} << kSplit;
  const DU du;
  const size_t piece = 4 * hn::Lanes(du) * sizeof(uint32_t);
  const size_t share = size / kStreams / piece * piece;
  auto even = hn::Zero(du), odd = even;
  for (size_t i = 0; i < share; i += piece) {
    for (size_t stream = 0; stream < kStreams; ++stream) {
      const uint8_t* const at = from + stream * share + i;
      for (size_t line = 0; line < piece; line += 64) Prefetch<kHint>(at + ahead + line);
      const auto sum = Piece(du, at);
      if (stream % 2 == 0) even = hn::Add(even, sum);
      if (stream % 2 == 1) odd = hn::Add(odd, sum);
    }
  }
  uint32_t sum = hn::ReduceSum(du, hn::Add(even, odd));
  for (size_t i = kStreams * share; i + sizeof(uint32_t) <= size; i += sizeof(uint32_t)) {
    uint32_t word;
    std::memcpy(&word, from + i, sizeof(word));
    sum += word;
  }
  return sum;
}

size_t MultiplyAdd(size_t turns, float* result) {
  const DF df;
  const auto x = hn::Set(df, 0.999f), y = hn::Set(df, 0.001f);
  // From values of their own: of chains that are equal, the compiler would compute one.
  const auto start = [&](float chain) HWY_ATTR { return hn::Set(df, *result + chain); };
  auto a = start(0), b = start(1), c = start(2), d = start(3), e = start(4), f = start(5);
  auto g = start(6), h = start(7), i = start(8), j = start(9), k = start(10), l = start(11);
  for (size_t turn = 0; turn < turns; ++turn) {
    a = hn::MulAdd(a, x, y), b = hn::MulAdd(b, x, y), c = hn::MulAdd(c, x, y);
    d = hn::MulAdd(d, x, y), e = hn::MulAdd(e, x, y), f = hn::MulAdd(f, x, y);
    g = hn::MulAdd(g, x, y), h = hn::MulAdd(h, x, y), i = hn::MulAdd(i, x, y);
    j = hn::MulAdd(j, x, y), k = hn::MulAdd(k, x, y), l = hn::MulAdd(l, x, y);
  }
  const auto abc = hn::Add(a, hn::Add(b, c)), def = hn::Add(d, hn::Add(e, f));
  const auto ghi = hn::Add(g, hn::Add(h, i)), jkl = hn::Add(j, hn::Add(k, l));
  *result = hn::ReduceSum(df, hn::Add(hn::Add(abc, def), hn::Add(ghi, jkl)));
  return hn::Lanes(df);
}

const Functions* TargetFunctions() {
#define NSA_HINTS(D, split)                                                          \
  {Read<D, split, kNone>, Read<D, split, kFirstLevel>, Read<D, split, kSecondLevel>, \
   Read<D, split, kPastTheCaches>}
#define NSA_SPLITS(D)                                                  \
  {                                                                    \
    NSA_HINTS(D, 0), NSA_HINTS(D, 1), NSA_HINTS(D, 2), NSA_HINTS(D, 3) \
  }
  using Whole = hn::CappedTag<uint32_t, 16>;
  using Half = hn::CappedTag<uint32_t, 8>;
  static constexpr Functions functions = {{NSA_SPLITS(Whole), NSA_SPLITS(Half)}, MultiplyAdd};
#undef NSA_SPLITS
#undef NSA_HINTS
  return &functions;
}

}  // namespace nsa::bench::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsa::bench {
namespace {

HWY_EXPORT(TargetFunctions);

struct Target {
  std::string name;
  const Functions* functions;
};

std::vector<Target> AllTargets() {
  std::vector<Target> targets;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::GetChosenTarget().Update(target);
    std::string name = hwy::TargetName(target);
    for (char& letter : name) letter = static_cast<char>(std::tolower(letter));
    targets.push_back({std::move(name), HWY_DYNAMIC_POINTER(TargetFunctions)()});
  }
  return targets;
}

// The instruction set of that name, null if there is none; for "scalar", the plainest there is.
const Functions* FunctionsOf(const char* name) {
  static const std::vector<Target> targets = AllTargets();
  for (const Target& target : targets) {
    if (target.name == name) return target.functions;
  }
  return std::string(name) == "scalar" ? targets.back().functions : nullptr;
}

// Seconds from the moment when all threads are there to the moment when the last one is done.
double Seconds(int64_t threads, const std::function<void(int64_t)>& body) {
  std::atomic<int64_t> waiting{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> others;
  for (int64_t thread = 1; thread < threads; ++thread) {
    others.emplace_back([&, thread] {
      waiting.fetch_add(1);
      while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
      body(thread);
      waiting.fetch_sub(1, std::memory_order_release);
    });
  }
  while (waiting.load() != threads - 1) std::this_thread::yield();
  const auto begin = std::chrono::steady_clock::now();
  go.store(true, std::memory_order_release);
  body(0);
  while (waiting.load(std::memory_order_acquire) != 0) std::this_thread::yield();
  const auto end = std::chrono::steady_clock::now();
  for (std::thread& other : others) other.join();
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace
}  // namespace nsa::bench

#define NSA_BENCH_EXPORT extern "C" __attribute__((visibility("default")))

// These two return -1 for an instruction set that is not there.

// Reads runs of memory, `repeats` times, each thread an equal share of the runs in order.
NSA_BENCH_EXPORT double nsa_bench_read(const char* target, const uint8_t* const* runs,
                                       const int64_t* sizes, int64_t count, int half, int split,
                                       int hint, int64_t ahead, int64_t threads, int64_t repeats,
                                       uint32_t* sum) {
  const nsa::bench::Functions* functions = nsa::bench::FunctionsOf(target);
  if (functions == nullptr) return -1;
  const nsa::bench::ReadFunction read = functions->read[half][split][hint];
  std::atomic<uint32_t> total{0};
  const double seconds = nsa::bench::Seconds(threads, [&](int64_t thread) {
    uint32_t own = 0;
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
      for (int64_t i = count * thread / threads; i < count * (thread + 1) / threads; ++i) {
        own += read(runs[i], static_cast<size_t>(sizes[i]), static_cast<size_t>(ahead));
      }
    }
    total.fetch_add(own);
  });
  *sum = total.load();
  return seconds;
}

// The C library's memcpy, which takes streaming stores where it pays.
NSA_BENCH_EXPORT double nsa_bench_copy(const uint8_t* from, uint8_t* to, int64_t size,
                                       int64_t threads, int64_t repeats) {
  return nsa::bench::Seconds(threads, [&](int64_t thread) {
    const int64_t begin = size * thread / threads, end = size * (thread + 1) / threads;
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
      std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin));
    }
  });
}

// Fused multiply-adds in registers; *operations: how many of numbers, two for each, all threads.
NSA_BENCH_EXPORT double nsa_bench_multiply_add(const char* target, int64_t threads, int64_t turns,
                                               double* operations) {
  const nsa::bench::Functions* functions = nsa::bench::FunctionsOf(target);
  if (functions == nullptr) return -1;
  std::atomic<size_t> lanes{0};
  std::vector<float> results(static_cast<size_t>(threads) * 64, 1.0f);
  const double seconds = nsa::bench::Seconds(threads, [&](int64_t thread) {
    float* result = &results[static_cast<size_t>(thread) * 64];  // a line of memory of its own
    lanes.store(functions->multiply_add(static_cast<size_t>(turns), result));
  });
  *operations = 2.0 * nsa::bench::kChains * static_cast<double>(lanes.load()) *
                static_cast<double>(turns * threads);
  return seconds;
}
#endif  // HWY_ONCE
