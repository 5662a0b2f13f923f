// onnxruntime sessions in several threads, for ThreadSanitizer: the library is registered, sessions
// are created, run and closed, and the instruction set is switched, all at the same time.
//   sessions LIBONNXRUNTIME MODEL...
// Each model has float16 inputs of known shapes. onnxruntime itself is not watched: every session
// stays on one thread, so that nothing of ours is handed over where the sanitizer cannot see it.
#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <thread>
#include <vector>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include "c_api/c_api.h"

namespace {

using Bits = std::vector<char>;

constexpr size_t kThreads = 4;
constexpr int kTurns = 3;

const OrtApiBase* base = nullptr;

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "FAILED %s\n", what.c_str());
  std::_Exit(1);
}

void SetTarget(const std::string& name) {
  if (nsa_set_cpu_target(name.c_str(), nullptr, 0) != 0) Fail("no target " + name);
}

// Options with the library, registered twice; with one of two configurations of it.
Ort::SessionOptions Options(size_t number) {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  if (number % 2 == 1) options.AddConfigEntry("nsa_onnx.ascend_backend", "aclnn");
  for (int twice = 0; twice < 2; ++twice) Ort::ThrowOnError(RegisterCustomOps(options, base));
  return options;
}

std::vector<std::string> Names(const Ort::Session& session, bool inputs) {
  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<std::string> names;
  for (size_t i = 0; i < (inputs ? session.GetInputCount() : session.GetOutputCount()); ++i) {
    names.emplace_back((inputs ? session.GetInputNameAllocated(i, allocator)
                               : session.GetOutputNameAllocated(i, allocator))
                           .get());
  }
  return names;
}

std::vector<const char*> Pointers(const std::vector<std::string>& names) {
  std::vector<const char*> pointers;
  for (const std::string& name : names) pointers.push_back(name.c_str());
  return pointers;
}

// The bytes of all outputs.
Bits Run(Ort::Session& session) {
  Ort::AllocatorWithDefaultOptions allocator;
  const std::vector<std::string> inputs = Names(session, true), outputs = Names(session, false);
  std::vector<Ort::Value> values;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::vector<int64_t> shape =
        session.GetInputTypeInfo(i).GetTensorTypeAndShapeInfo().GetShape();
    values.push_back(Ort::Value::CreateTensor(allocator, shape.data(), shape.size(),
                                              ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16));
    auto* elements = static_cast<uint16_t*>(values.back().GetTensorMutableRawData());
    const size_t count = values.back().GetTensorTypeAndShapeInfo().GetElementCount();
    // From 0.25 to 1, of both signs, in an order without a period that a shape could have.
    for (size_t e = 0; e < count; ++e) {
      const auto mixed = static_cast<uint32_t>(e) * 2654435761u;
      elements[e] = static_cast<uint16_t>(0x3400 + (mixed >> 21) + (mixed & 0x100) * 0x80);
    }
  }
  const std::vector<Ort::Value> results =
      session.Run(Ort::RunOptions{}, Pointers(inputs).data(), values.data(), values.size(),
                  Pointers(outputs).data(), outputs.size());
  Bits bits;
  for (const Ort::Value& result : results) {
    const auto info = result.GetTensorTypeAndShapeInfo();
    const size_t size =
        info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? 2 : sizeof(int32_t);
    const auto* begin = static_cast<const char*>(result.GetTensorRawData());
    bits.insert(bits.end(), begin, begin + size * info.GetElementCount());
  }
  return bits;
}

// work(0) .. work(count - 1), in threads that begin together.
template <class Work>
void AtOnce(size_t count, Work work) {
  std::atomic<size_t> ready{0};
  std::vector<std::thread> threads;
  for (size_t number = 0; number < count; ++number) {
    threads.emplace_back([&, number] {
      for (++ready; ready < count;) std::this_thread::yield();
      work(number);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

std::vector<std::string> Targets() {
  std::vector<std::string> targets(1);
  for (const char* c = nsa_cpu_targets(); *c != '\0'; ++c) {
    if (*c == ',') {
      targets.emplace_back();
    } else {
      targets.back() += *c;
    }
  }
  return targets;
}

int Main(const std::vector<std::string>& models) {
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "sessions");
  const auto session = [&](size_t number, size_t model) {
    return Ort::Session(env, models[model].c_str(), Options(number));
  };

  // The first registrations of the process, and the first look for CANN.
  std::vector<std::vector<Bits>> first(kThreads);
  AtOnce(kThreads, [&](size_t number) {
    if (*nsa_ascend_backends() == '\0') Fail("no backends");
    for (size_t m = 0; m < models.size(); ++m) {
      Ort::Session running = session(number, (m + number) % models.size());
      first[number].push_back(Run(running));
    }
  });
  const auto result = [&](size_t number, size_t m) -> const Bits& {
    return first[number][(m + models.size() - number % models.size()) % models.size()];
  };

  // Every instruction set alone.
  const std::vector<std::string> targets = Targets();
  std::vector<Ort::Session> lasting;
  std::vector<std::vector<Bits>> wanted(targets.size());  // [target][model]
  for (size_t m = 0; m < models.size(); ++m) lasting.push_back(session(0, m));
  for (size_t t = 0; t < targets.size(); ++t) {
    SetTarget(targets[t]);
    for (Ort::Session& running : lasting) wanted[t].push_back(Run(running));
  }
  const auto in_use = [&] {
    size_t t = 0;
    while (targets[t] != nsa_cpu_target()) ++t;
    return t;
  };
  SetTarget("auto");
  for (size_t number = 0; number < kThreads; ++number) {
    for (size_t m = 0; m < models.size(); ++m) {
      if (result(number, m) != wanted[in_use()][m]) Fail("other bits in threads: " + models[m]);
    }
  }

  // Sessions come and go while one thread switches: each run is of one instruction set.
  std::vector<std::set<Bits>> possible(models.size());
  for (const auto& bits : wanted) {
    for (size_t m = 0; m < models.size(); ++m) possible[m].insert(bits[m]);
  }
  std::atomic<bool> going{true};
  std::thread switching([&] {
    for (size_t turn = 0; going; ++turn) SetTarget(targets[turn % targets.size()]);
  });
  AtOnce(kThreads, [&](size_t number) {
    for (int turn = 0; turn < kTurns; ++turn) {
      const size_t m = (number + static_cast<size_t>(turn)) % models.size();
      Ort::Session running = session(number, m);
      if (possible[m].count(Run(running)) == 0) Fail("bits of no target: " + models[m]);
    }
  });
  going = false;
  switching.join();

  std::printf("sessions: %zu models on %zu threads, %zu instruction sets: nothing found\n",
              models.size(), kThreads, targets.size());
  return 0;
}

}  // namespace

int main(int count, char** words) {
  if (count < 3) Fail("sessions LIBONNXRUNTIME MODEL...");
  void* library = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) Fail(dlerror());
  base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"))();
  Ort::InitApi(base->GetApi(ORT_API_VERSION));
  try {
    return Main({words + 2, words + count});
  } catch (const std::exception& error) {
    Fail(error.what());
  }
}
