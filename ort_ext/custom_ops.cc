// RegisterCustomOps: what onnxruntime looks for in a custom-op library.
#include <algorithm>
#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>

#include "c_api/c_api.h"
#include "device/cann/backend.h"
#include "operators/list.h"
#include "operators/nodes.h"
#include "ort/custom_op.h"

namespace nsa::ort {
namespace {

// N of the version string "1.N.P".
uint32_t MinorVersion(const OrtApiBase* base) {
  const char* version = base->GetVersionString();
  while (*version != '\0' && *version != '.') ++version;
  return *version == '.' ? static_cast<uint32_t>(std::strtoul(version + 1, nullptr, 10)) : 0;
}

// The domain and its ops, every one for the CPU and for CANN. Sessions keep pointers to them for as
// long as they live and options may be used again, so they stay (as the library does, which is
// linked to stay loaded). There is one for everything that a session may ask for: an op cannot
// see the session's configuration.
class Registration {
 public:
  explicit Registration(cann::SessionChoice choice) : domain_(spec::kDomain) {
    std::apply([&](auto... op) { (Add(op, choice), ...); }, Operators());
  }

  OrtCustomOpDomain* domain() const { return domain_; }

 private:
  template <class Operator>
  void Add(Operator, cann::SessionChoice choice) {
    for (const DType dtype : kDTypes) {
      using Cpu = CpuNode<Operator>;
      Keep(new CustomOp<Operator, Cpu>("CPUExecutionProvider", dtype,
                                       [=](auto* info) { return new Cpu(info, dtype); }));
      using Cann = CannNode<Operator>;
      Keep(new CustomOp<Operator, Cann>(cann::kProvider, dtype,
                                        [=](auto* info) { return new Cann(info, dtype, choice); }));
    }
  }
  void Keep(const OrtCustomOp* op) { domain_.Add(op); }

  Ort::CustomOpDomain domain_;
};

// An entry of the session's configuration.
std::optional<std::string> Entry(OrtSessionOptions* options, const OrtApi* api, const char* key) {
  int found = 0;
  Ort::ThrowOnError(api->HasSessionConfigEntry(options, key, &found));
  if (found == 0) return std::nullopt;
  size_t size = 0;
  Ort::ThrowOnError(api->GetSessionConfigEntry(options, key, nullptr, &size));
  std::string value(size, '\0');
  Ort::ThrowOnError(api->GetSessionConfigEntry(options, key, value.data(), &size));
  return value.c_str();  // `size` counts the terminator
}

// What the session's configuration asks for, for the backend else the environment.
cann::SessionChoice Choice(OrtSessionOptions* options, const OrtApi* api) {
  const char* variable = std::getenv(cann::kBackendVariable);
  const std::string backend =
      Entry(options, api, cann::kBackendKey).value_or(variable == nullptr ? "" : variable);
  return {cann::ParseBackend(backend),
          cann::ParseCheck(Entry(options, api, cann::kCheckKey).value_or(""))};
}

// Our entry in the configuration of options that have the ops: onnxruntime cannot be asked for it,
// and refuses a domain that comes twice when a session is made.
constexpr char kRegisteredKey[] = "nsa_onnx.library_registered";

OrtStatusPtr Register(OrtSessionOptions* options, const OrtApiBase* base, const OrtApi* api,
                      uint32_t version) {
  static std::mutex mutex;
  static const OrtApiBase* served = nullptr;
  static auto* registrations = new std::map<cann::SessionChoice, Registration>;
  const std::lock_guard<std::mutex> lock(mutex);
  if (served == nullptr) {
    Ort::InitApi(api);
    SetRuntimeApiVersion(version);
    served = base;
  } else if (served != base) {
    return api->CreateStatus(
        ORT_FAIL, "nsa_onnx serves one onnxruntime per process, and another one came first");
  }
  int has_ops = 0;
  Ort::ThrowOnError(api->HasSessionConfigEntry(options, kRegisteredKey, &has_ops));
  if (has_ops != 0) return nullptr;
  const cann::SessionChoice choice = Choice(options, api);
  const Registration& registration = registrations->try_emplace(choice, choice).first->second;
  Ort::ThrowOnError(api->AddCustomOpDomain(options, registration.domain()));
  return api->AddSessionConfigEntry(options, kRegisteredKey, "1");
}

}  // namespace

}  // namespace nsa::ort

extern "C" NSA_EXPORT OrtStatusPtr RegisterCustomOps(OrtSessionOptions* options,
                                                     const OrtApiBase* base) {
  const uint32_t version = nsa::ort::MinorVersion(base);
  const OrtApi* api = base->GetApi(std::min(nsa::ort::kApiVersion, version));
  if (api == nullptr || version < nsa::ort::kOldestApiVersion) {
    api = base->GetApi(1);  // CreateStatus is in every version
    return api ? api->CreateStatus(ORT_FAIL, "nsa_onnx needs onnxruntime 1.21 or newer") : nullptr;
  }
  try {
    return nsa::ort::Register(options, base, api, version);
  } catch (const std::exception& e) {
    return api->CreateStatus(ORT_FAIL, e.what());
  } catch (...) {
    return api->CreateStatus(ORT_FAIL, "unknown error");
  }
}
