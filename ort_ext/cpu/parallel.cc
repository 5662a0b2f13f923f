// See parallel.h.
#include "cpu/parallel.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

namespace nsa::cpu {

int64_t PartCount(int64_t units, int64_t bytes, int64_t most) {
  // Starting a thread costs some 20 us; reading this many bytes takes about as long.
  constexpr int64_t kBytesPerPart = int64_t{1} << 17;
  const int64_t worth = std::min(units, bytes / kBytesPerPart + 1);
  return std::max<int64_t>(1, std::min(worth, most));
}

int64_t PartBegin(int64_t units, int64_t parts, int64_t part) {
  // units / parts each, the first units % parts one more: no product that could overflow.
  return units / parts * part + std::min(part, units % parts);
}

void RunOnThreads(int64_t units, int64_t parts, const PartBody& body) {
  const auto run = [&](int64_t part) {
    body(part, PartBegin(units, parts, part), PartBegin(units, parts, part + 1));
  };
  std::vector<std::thread> threads;
  int64_t started = 1;
  try {
    threads.reserve(static_cast<size_t>(parts - 1));
    for (; started < parts; ++started) threads.emplace_back(run, started);
  } catch (const std::exception&) {
    // The system has no thread or memory left for us: the caller's thread does what remains.
  }
  run(0);
  for (int64_t part = started; part < parts; ++part) run(part);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace nsa::cpu
