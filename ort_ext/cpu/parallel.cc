// See parallel.h.
#include "cpu/parallel.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

namespace nsa::cpu {
namespace {

// To start a thread takes some 50 us.
constexpr int64_t kBytesWorthAThread = int64_t{1} << 20;

// More threads than this are a mistake, and memory bandwidth is used up long before.
constexpr int64_t kMostThreads = 256;

// First unit of part `part` of `parts`; part `parts` ends the range.
int64_t PartBegin(int64_t units, int64_t parts, int64_t part) {
  // units / parts each, the first units % parts one more: no product that could overflow.
  return units / parts * part + std::min(part, units % parts);
}

// `units` units of work, each of which reads about `unit_tokens` tokens of one head, and at least
// `least_units` of them at once.
template <class Data, class Kernel>
void Run(const Data& data, Kernel kernel, int64_t units, int64_t unit_tokens, int64_t least_units,
         const Parallel& parallel) {
  // Where D is 0 there may be any number of units, of which the bytes could not be counted.
  if (units == 0 || data.dim == 0) return;
  const int64_t bytes = units * unit_tokens * data.dim * int64_t{sizeof(uint16_t)};
  const int64_t worth = std::min(units / least_units, bytes / parallel.bytes_per_part + 1);
  const int64_t parts = std::max<int64_t>(1, std::min(worth, parallel.most_parts));
  const size_t scratch_size = ScratchSize(data);
  const std::unique_ptr<float[]> scratch(new float[scratch_size * static_cast<size_t>(parts)]);
  const auto body = [&](int64_t part) {
    kernel(data, PartBegin(units, parts, part), PartBegin(units, parts, part + 1),
           scratch.get() + scratch_size * static_cast<size_t>(part));
  };
  if (parts == 1) {
    body(0);
  } else {
    parallel.run(parts, body);
  }
}

void RunOnOwnThreads(int64_t parts, const std::function<void(int64_t)>& body) {
  std::vector<std::thread> threads;
  int64_t started = 1;
  try {
    threads.reserve(static_cast<size_t>(parts - 1));
    for (; started < parts; ++started) threads.emplace_back(std::cref(body), started);
  } catch (const std::exception&) {
    // The system has no thread or memory left for us: the caller's thread does what remains.
  }
  body(0);
  for (int64_t part = started; part < parts; ++part) body(part);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

Parallel OwnThreads(int64_t threads) {
  return {std::min(threads, kMostThreads), kBytesWorthAThread, RunOnOwnThreads};
}

void RunCompress(DType dtype, const CompressData& data, const Parallel& parallel) {
  int64_t rows = 0;
  if (data.run_count > 0) {
    const RowRun& last = data.runs[data.run_count - 1];
    rows = last.first_row + last.rows;
  }
  // A part begins with the tokens that its first windows share with the part before: with fewer
  // rows it would read more of them than of its own.
  const int64_t least_rows = static_cast<int64_t>(OverlappingWindows(data));
  Run(data, ActiveKernels().compress[static_cast<int>(dtype)], rows, data.stride * data.heads,
      least_rows, parallel);
}

void RunInfer(DType dtype, const InferData& data, const Parallel& parallel) {
  const int64_t units = data.write_count * data.heads;
  Run(data, ActiveKernels().infer[static_cast<int>(dtype)], units, data.block, 1, parallel);
}

}  // namespace nsa::cpu
