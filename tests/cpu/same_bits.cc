// Same bits from every instruction set, in every split, on any number of threads.
//
//   same_bits [TARGET...]     exit status 0: all agree; 1: not, with the first differences
//
// Each case runs on the scalar kernel and on all targets of this machine (or the named ones, which
// it must have), whole and in parts, between pages that may not be touched, in floating point modes
// that a host might have set. A digest of an operator's results says that this machine's scalar
// kernel agrees with that of the machine where the digest was written down; tests/test_kernel.py
// compares it with an oracle.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cinttypes>
#include <cstdlib>

#include "tester.h"

namespace nsa::cpu {
namespace {

constexpr int kMostFailuresShown = 10;

char g_doing[1024];
int g_failures = 0;

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
  int cases = 0;
  for (const OperatorTest& test : OperatorTests()) {
    Tester tester(targets), paged(targets);
    test.run(&tester);
    Doing(test.name, "all cases, scalar");
    if (tester.digest() != test.digest) {
      Fail(Text("the scalar kernel gives digest 0x%016" PRIX64 ", not 0x%016" PRIX64
                " as where the cases were written",
                tester.digest(), test.digest));
    }
    if (test.run_paged != nullptr) test.run_paged(&paged);
    for (const DType dtype : kDTypes) test.run_threads(dtype, targets);
    cases += tester.cases() + paged.cases();
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::string names;
  for (const std::string& target : targets) names += " " + target;
  std::printf("%s:%s; %d cases, %.1f s\n", g_failures ? "DIFFERENT" : "same bits", names.c_str(),
              cases, seconds.count());
  return g_failures ? 1 : 0;
}

}  // namespace

std::vector<OperatorTest>& OperatorTests() {
  static std::vector<OperatorTest> tests;
  return tests;
}

void Fail(const std::string& what) {
  if (++g_failures <= kMostFailuresShown)
    std::fprintf(stderr, "FAILED %s\n  in %s\n", what.c_str(), g_doing);
}

std::string Joined(const std::vector<int64_t>& numbers) {
  std::string text;
  for (const int64_t number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
  return "[" + text + "]";
}

void Doing(const std::string& what, const std::string& how) {
  std::snprintf(g_doing, sizeof g_doing, "%s: %s", what.c_str(), how.c_str());
}

}  // namespace nsa::cpu

int main(int argc, char** argv) { return nsa::cpu::Main(argc, argv); }
