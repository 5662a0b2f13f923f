// Runs a kernel in parts, on whatever threads the caller has. The split never changes a bit.
#ifndef NSA_ONNX_ORT_EXT_CPU_PARALLEL_H_
#define NSA_ONNX_ORT_EXT_CPU_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace nsa::cpu {

// Where a kernel's parts run: at most `most_parts`, each of which reads `bytes_per_part` or more
// (as much as is read while work is handed to another thread), through run(parts, body), which
// calls body(0) .. body(parts - 1) in any order, on any threads, and returns when all have
// returned.
struct Parallel {
  int64_t most_parts;
  int64_t bytes_per_part;
  std::function<void(int64_t parts, const std::function<void(int64_t)>& body)> run;
};

// Up to `threads` threads, started for this one call: for Python's eager calls. Inside onnxruntime,
// its own pool takes their place.
Parallel OwnThreads(int64_t threads);

// First unit of part `part` of `parts`; part `parts` ends the range.
inline int64_t PartBegin(int64_t units, int64_t parts, int64_t part) {
  // units / parts each, the first units % parts one more: no product that could overflow.
  return units / parts * part + std::min(part, units % parts);
}

// Runs kernel(data, first, last, scratch) over `units` units of work, each of which reads about
// `unit_tokens` tokens of one head, and at least `least_units` of them at once.
template <class Data, class Kernel>
void RunParts(const Data& data, Kernel kernel, int64_t units, int64_t unit_tokens,
              int64_t least_units, const Parallel& parallel) {
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

// Calls body(chunk, scratch) for chunks 0 .. chunks - 1, whose work may differ much: each part
// takes the next one that is left. A part has `scratch_size` elements of its own. All chunks
// together take as long as reading `bytes`.
template <class Body>
void RunChunks(int64_t chunks, int64_t bytes, size_t scratch_size, const Parallel& parallel,
               Body body) {
  if (chunks == 0) return;
  const int64_t worth = std::min(chunks, bytes / parallel.bytes_per_part + 1);
  const int64_t parts = std::max<int64_t>(1, std::min(worth, parallel.most_parts));
  const std::unique_ptr<float[]> scratch(new float[scratch_size * static_cast<size_t>(parts)]);
  std::atomic<int64_t> next{0};
  const auto part = [&](int64_t index) {
    float* const own = scratch.get() + scratch_size * static_cast<size_t>(index);
    for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
      body(chunk, own);
    }
  };
  if (parts == 1) {
    part(0);
  } else {
    parallel.run(parts, part);
  }
}

}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_PARALLEL_H_
