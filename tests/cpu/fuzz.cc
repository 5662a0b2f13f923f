// The fuzzer of fuzzer.h, as a program. Built with sanitizers and run by sanitize.sh.
//
//   fuzz SECONDS SEED [OPERATOR...]   exit status 0: nothing was found; else the case is printed
//
// SECONDS are of the processor, all threads together: a busy machine takes longer and tries as
// much. First every operator's found cases. Then, by turns, a random case of each, on all
// instruction sets, on one thread and on several, and with a second thread that writes into the
// indices during the call; and as nodes, where nodes.cc is linked. Then cases on several threads of
// the host at once, while another one switches the instruction set. Last, two threads that switch
// it at once.
#include <hwy/targets.h>
#include <signal.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <mutex>
#include <thread>

#include "float_mode.h"
#include "fuzzer.h"

// The sanitizers' own: called before they end the process. Absent in a build without them.
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace nsa::cpu::fuzz {
namespace {

constexpr size_t kHosts = 3;          // threads that run cases at once
constexpr int64_t kLeastCases = 12;   // of every operator, however slow the machine is
constexpr int64_t kMostThreads = 4;   // of a call
constexpr size_t kSwitches = 100000;  // of two threads at once
constexpr int64_t kMany = 200;        // legal cases: some can be run on the device

// What every host's thread is doing, for who prints it while the process ends.
std::array<std::array<char, 16384>, kHosts> g_cases;
std::atomic<bool> g_together{false};

thread_local size_t t_host = 0;

void PrintCase(size_t host) { std::fprintf(stderr, "  %s\n", g_cases[host].data()); }

// By a sanitizer, on any thread: a library's own thread does not know whose it is.
void PrintCases() {
  std::fprintf(stderr, "The case (to be put into `found` of its operator in tests/cpu/fuzz/)%s:\n",
               g_together ? ", one of these" : "");
  for (size_t host = 0; host < (g_together ? kHosts : 1); ++host) PrintCase(host);
}

using Clock = std::chrono::steady_clock;

double ProcessorSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

std::vector<std::string> Targets() {
  std::vector<std::string> targets{""};
  for (const char* c = nsa_cpu_targets(); *c != '\0'; ++c) {
    if (*c == ',') {
      targets.emplace_back();
    } else {
      targets.back() += *c;
    }
  }
  // The scalar reference, the last one, comes first: it is what others are compared with.
  std::rotate(targets.begin(), targets.end() - 1, targets.end());
  return targets;
}

std::vector<std::vector<unsigned char>> Contents(const std::vector<Memory*>& arrays) {
  std::vector<std::vector<unsigned char>> contents;
  for (const Memory* array : arrays) contents.push_back(array->bytes());
  return contents;
}

// The first byte in which arrays are not what they were; empty if there is none.
std::string FirstOther(const std::vector<Memory*>& arrays,
                       const std::vector<std::vector<unsigned char>>& before) {
  for (size_t i = 0; i < arrays.size(); ++i) {
    const std::vector<unsigned char>& bytes = arrays[i]->bytes();
    const auto [is, was] = std::mismatch(bytes.begin(), bytes.end(), before[i].begin());
    if (is == bytes.end()) continue;
    char text[120];
    std::snprintf(text, sizeof text, "byte %td of %s is 0x%02X and not 0x%02X", is - bytes.begin(),
                  arrays[i]->name(), *is, *was);
    return text;
  }
  return {};
}

// Another seed for every number of a case, operator and part of the run.
uint64_t SeedOf(uint64_t seed, uint64_t index) { return Random(seed ^ (index << 32)).Next(); }

void Switch(const std::string& target) {
  if (nsa_set_cpu_target(target.c_str(), nullptr, 0))
    Fail("the instruction set cannot be switched");
}

void Together(const std::vector<Part>& parts, const std::vector<std::string>& targets,
              uint64_t seed, double end, int64_t* calls) {
  g_together = true;
  std::atomic<bool> stop{false};
  std::thread switches([&] {
    for (size_t i = 0; !stop; ++i) {
      Switch(targets[i % targets.size()]);
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> hosts;
  std::atomic<int64_t> sum{0};
  for (size_t host = 0; host < kHosts; ++host) {
    hosts.emplace_back([&, host] {
      t_host = host;
      Runner runner(targets, false, host);
      for (uint64_t i = 0; i < kLeastCases * parts.size() || ProcessorSeconds() < end; ++i) {
        parts[i % parts.size()].random(&runner, SeedOf(seed, 1 + i * (kHosts + 1) + host));
      }
      sum += runner.legal() + runner.refused();
    });
  }
  for (std::thread& host : hosts) host.join();
  stop = true;
  switches.join();
  *calls = sum;
}

// The last one wins altogether: Highway's dispatch is that of the set whose name is told.
void SwitchAtOnce(const std::vector<std::string>& targets) {
  std::map<std::string, size_t> dispatch;
  for (const std::string& target : targets) {
    Switch(target);
    if (target != "scalar") dispatch[target] = hwy::GetChosenTarget().GetIndex();
  }
  std::atomic<size_t> begun{0}, met{0}, done{0};
  std::thread other([&] {
    for (size_t round = 1; round <= kSwitches; ++round) {
      while (begun < round) std::this_thread::yield();
      met = round;
      for (size_t wait = round % 64; wait > 0 && begun == round;) --wait;  // now earlier, now later
      Switch(targets[round % targets.size()]);
      done = round;
    }
  });
  for (size_t round = 1; round <= kSwitches; ++round) {
    begun = round;
    while (met < round) std::this_thread::yield();
    Switch(targets[(round + 1) % targets.size()]);
    while (done < round) std::this_thread::yield();
    const auto told = dispatch.find(nsa_cpu_target());
    if (told != dispatch.end() && told->second != hwy::GetChosenTarget().GetIndex()) {
      Fail("two threads switched at once, and " + told->first + " is told but not in use");
    }
  }
  other.join();
}

int Main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: fuzz SECONDS SEED [OPERATOR...]\n");
    return 2;
  }
  const double seconds = std::atof(argv[1]);
  const uint64_t seed = std::strtoull(argv[2], nullptr, 0);
  std::vector<Part> parts;
  for (int i = 3; i < argc; ++i) {
    const auto named = [&](const Part& part) { return std::string(argv[i]) == part.name; };
    const auto part = std::find_if(Parts().begin(), Parts().end(), named);
    if (part == Parts().end()) {
      std::fprintf(stderr, "fuzz: no operator %s\n", argv[i]);
      return 2;
    }
    parts.push_back(*part);
  }
  if (parts.empty()) parts = Parts();
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(PrintCases);
  signal(SIGABRT, [](int) { PrintCases(); });  // UndefinedBehaviorSanitizer has no callback

  const auto begin = Clock::now();
  const std::vector<std::string> targets = Targets();
  std::vector<Runner> runners(parts.size(), Runner(targets, true, 0));
  for (size_t p = 0; p < parts.size(); ++p) parts[p].found(&runners[p]);
  for (uint64_t i = 0; i < kLeastCases || ProcessorSeconds() < 0.7 * seconds; ++i) {
    for (size_t p = 0; p < parts.size(); ++p) {
      parts[p].random(&runners[p], SeedOf(seed, (i * parts.size() + p) * (kHosts + 1)));
    }
  }
  int64_t together = 0;
  Together(parts, targets, seed, seconds, &together);
  SwitchAtOnce(targets);

  std::string names;
  for (const std::string& target : targets) names += " " + target;
  std::printf("fuzz: nothing found with seed %" PRIu64 " on%s in %.0f s;", seed, names.c_str(),
              std::chrono::duration<double>(Clock::now() - begin).count());
  bool both = true;
  for (size_t p = 0; p < parts.size(); ++p) {
    const int64_t legal = runners[p].legal(), elsewhere = runners[p].elsewhere();
    std::printf(" %s %" PRId64 " legal cases and %" PRId64 " to refuse,", parts[p].name, legal,
                runners[p].refused());
    if (!Ways().empty()) std::printf(" %" PRId64 " runs on the device,", elsewhere);
    both = both && legal > 0 && runners[p].refused() > 0;
    both = both && (elsewhere > 0 || Ways().empty() || legal < kMany);
  }
  std::printf(" %" PRId64 " cases at the same time as others\n", together);
  if (!both)
    std::fprintf(stderr, "fuzz: an operator lacks legal cases, runs, or cases to refuse\n");
  return both ? 0 : 1;
}

}  // namespace

std::vector<Part>& Parts() {
  static std::vector<Part> parts;
  return parts;
}

std::vector<Way>& Ways() {
  static std::vector<Way> ways;
  return ways;
}

void Fail(const std::string& what) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);  // never left: the first one ends the process
  std::fprintf(stderr, "FAILED %s\n", what.c_str());
  std::fprintf(stderr, "The case (to be put into `found` of its operator in tests/cpu/fuzz/):\n");
  PrintCase(t_host);
  std::fflush(stderr);
  std::_Exit(1);
}

void Memory::Poke(size_t index, int64_t value) {
  if (item_ == sizeof(int32_t)) {
    __atomic_store_n(as<int32_t>() + index, static_cast<int32_t>(value), __ATOMIC_RELAXED);
  } else {
    __atomic_store_n(as<int64_t>() + index, value, __ATOMIC_RELAXED);
  }
}

void Runner::Begin(const std::string& text, uint64_t seed) {
  std::snprintf(g_cases[index_].data(), g_cases[index_].size(), "%s", text.c_str());
  random_ = Random(~seed);
}

bool Runner::Once(const Call& call, const std::string& how, int64_t threads, bool exact) {
  for (Memory* output : call.outputs) output->Restore();
  const auto size = OneOf<int64_t>({0, 1, 20, 512, 512, 512}, &random_);
  std::vector<char> error(static_cast<size_t>(size), '#');
  SetMode(kModes[random_.Between(0, 1)]);
  const Mode mode = GetMode();
  const int status = call.call(threads, size > 0 ? error.data() : nullptr, size);
  const Mode left = GetMode();
  SetMode(kModes[0]);

  const std::string prefix = how + ", " + std::to_string(threads) + " threads: ";
  if (left != mode) Fail(prefix + "the thread's floating point mode was changed");
  const std::string message(error.begin(), std::find(error.begin(), error.end(), '\0'));
  const bool cannot = !exact && status == kCannot;
  if (status != (call.legal ? 0 : 1) && !cannot) {
    Fail(prefix + (call.legal ? "refused: " + message : "a call that is not legal was taken"));
  }
  const bool refused = !call.legal || cannot;
  if (!refused && message != std::string(error.size(), '#')) {
    Fail(prefix + "succeeded, and wrote an error");
  }
  if (refused && size > 0 && (message.empty() != (size == 1) || message.back() == '#')) {
    Fail(prefix + "was refused without a message");
  }
  for (Memory* input : call.inputs) {
    if (!input->IsUntouched()) Fail(prefix + input->name() + " was written");
  }
  for (Memory* output : call.outputs) {
    if (refused && !output->IsUntouched()) Fail(prefix + "refused, and wrote " + output->name());
    if (!output->BeginUntouched())
      Fail(prefix + "wrote before the first element of " + output->name());
  }
  const std::string wrong = refused ? "" : call.judge(exact);
  if (!wrong.empty()) Fail(prefix + wrong);
  return !refused;
}

void Runner::AsNode(const Call& call, const Way& way) {
  if (call.node.op == nullptr) return;
  Call node = call;
  node.call = [&](int64_t, char* error, int64_t size) { return way.run(call, error, size); };
  if (Once(node, way.name, 1, way.is_exact) && !way.is_exact) ++elsewhere_;
  if (alone_ && random_.OneIn(6)) Race(node);
}

// Another thread changes indices during the call. Whatever it reads, it stays within the arrays,
// which the sanitizers watch, and writes nothing if it refuses.
void Runner::Race(const Call& call) {
  std::vector<Memory*> arrays;
  for (Memory* array : call.indices) {
    if (array->size() > 0) arrays.push_back(array);
  }
  if (arrays.empty()) return;
  std::atomic<bool> stop{false};
  Random random(random_.Next());
  std::thread writer([&] {
    while (!stop) {
      Memory* array = OneOf(arrays, &random);
      const auto last = static_cast<int64_t>(array->size()) - 1;
      array->Poke(static_cast<size_t>(random.Between(0, last)),
                  random.OneIn(4) ? Hostile(last + 1, &random) : random.Between(0, 300));
    }
  });
  for (int i = 0; i < 4; ++i) {
    for (Memory* output : call.outputs) output->Restore();
    const int status = call.call(1 + i, nullptr, 0);
    for (Memory* output : call.outputs) {
      if (status != 0 && !output->IsUntouched()) {
        stop = true;
        writer.join();
        Fail(std::string("refused while indices changed, and wrote ") + output->name());
      }
    }
  }
  stop = true;
  writer.join();
  for (Memory* array : arrays) array->Restore();
}

void Runner::Run(const Call& call) {
  ++(call.legal ? legal_ : refused_);
  if (!alone_) {
    Once(call, "while others run", random_.Between(1, kMostThreads));
    if (!Ways().empty()) AsNode(call, OneOf(Ways(), &random_));
    return;
  }
  std::vector<std::vector<unsigned char>> first;
  // No instruction set has a part in a refusal.
  const std::vector<std::string> one{OneOf(targets_, &random_)};
  for (const std::string& target : call.legal ? targets_ : one) {
    if (nsa_set_cpu_target(target.c_str(), nullptr, 0)) Fail("no target " + target);
    if (!call.same_bits) first.clear();
    for (const int64_t threads : {int64_t{1}, random_.Between(2, kMostThreads)}) {
      Once(call, target, threads);
      if (first.empty()) first = Contents(call.outputs);
      const std::string other = FirstOther(call.outputs, first);
      if (!other.empty()) {
        Fail(target + ", " + std::to_string(threads) + " threads: " + other + ", as " +
             (call.same_bits ? targets_.front() : target) + " has on one thread");
      }
    }
  }
  if (random_.OneIn(6)) Race(call);
  if (Ways().empty()) return;
  if (!call.legal) return AsNode(call, OneOf(Ways(), &random_));
  for (const Way& way : Ways()) AsNode(call, way);
}

Printer::Printer(DType dtype, Values values, uint64_t seed) {
  constexpr const char* kKinds[] = {"kModerate", "kAnyBits", "kFinite", "kCancelling", "kLargest",
                                    "kSmallest", "kTies",    "kBorder", "kSpecial"};
  static_assert(sizeof kKinds / sizeof kKinds[0] == kValueKinds);
  AddText("dtype", dtype == DType::kFloat16 ? "DType::kFloat16" : "DType::kBFloat16");
  AddText("values", std::string("Values::") + kKinds[static_cast<int>(values)]);
  AddText("seed", std::to_string(seed) + "u");
}

Printer& Printer::Add(const char* field, double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", value);
  const std::string special = value > 0 ? "HUGE_VAL" : value < 0 ? "-HUGE_VAL" : "NAN";
  return AddText(field, std::isfinite(value) ? text : special);
}

std::string Printer::Literal(int64_t value) {
  if (value == std::numeric_limits<int64_t>::min()) return "INT64_MIN";
  return std::to_string(value);
}

std::string Difference(DType dtype, const char* name, const uint16_t* got,
                       const std::vector<uint16_t>& want, const Dims& dims) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (got[i] == want[i] || (IsNan(dtype, got[i]) && IsNan(dtype, want[i]))) continue;
    std::string at;
    int64_t rest = static_cast<int64_t>(i);
    for (size_t axis = dims.size(); axis-- > 0; rest /= dims[axis]) {
      at = std::to_string(rest % dims[axis]) + (at.empty() ? "" : ", ") + at;
    }
    char text[160];
    std::snprintf(text, sizeof text, "%s[%s] is 0x%04X, the oracle has 0x%04X", name, at.c_str(),
                  got[i], want[i]);
    return text;
  }
  return {};
}

}  // namespace nsa::cpu::fuzz

int main(int argc, char** argv) { return nsa::cpu::fuzz::Main(argc, argv); }
