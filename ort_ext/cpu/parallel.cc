// See parallel.h.
#include "cpu/parallel.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

namespace nsa::cpu {
namespace {

// To start a thread takes some 50 us. Builds with sanitizers have less: their calls are small.
#ifndef NSA_ONNX_BYTES_WORTH_A_THREAD
#define NSA_ONNX_BYTES_WORTH_A_THREAD (int64_t{1} << 20)
#endif
constexpr int64_t kBytesWorthAThread = NSA_ONNX_BYTES_WORTH_A_THREAD;

// More threads than this are a mistake, and memory bandwidth is used up long before.
constexpr int64_t kMostThreads = 256;

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

}  // namespace nsa::cpu
