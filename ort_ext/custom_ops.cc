// RegisterCustomOps: what onnxruntime looks for in a custom-op library.
#include <algorithm>
#include <cstdlib>
#include <exception>
#include <mutex>

#include "c_api.h"
#include "nsa_compress.h"
#include "nsa_compress_infer.h"

namespace nsa::ort {
namespace {

uint32_t runtime_version = 0;

// N of the version string "1.N.P".
uint32_t MinorVersion(const OrtApiBase* base) {
  const char* version = base->GetVersionString();
  while (*version != '\0' && *version != '.') ++version;
  return *version == '.' ? static_cast<uint32_t>(std::strtoul(version + 1, nullptr, 10)) : 0;
}

// The domain and its ops. Sessions keep pointers to them for as long as they live and options may
// be used again, so there is one for the whole process, and it stays (as the library does, which is
// linked to stay loaded).
struct Registration {
  const OrtApiBase* base;
  CompressOp compress_float16{cpu::DType::kFloat16};
  CompressOp compress_bfloat16{cpu::DType::kBFloat16};
  InferOp infer_float16{cpu::DType::kFloat16};
  InferOp infer_bfloat16{cpu::DType::kBFloat16};
  Ort::CustomOpDomain domain{spec::kDomain};

  explicit Registration(const OrtApiBase* api_base) : base(api_base) {
    domain.Add(&compress_float16);
    domain.Add(&compress_bfloat16);
    domain.Add(&infer_float16);
    domain.Add(&infer_bfloat16);
  }
};

OrtStatusPtr Register(OrtSessionOptions* options, const OrtApiBase* base, const OrtApi* api,
                      uint32_t version) {
  static std::mutex mutex;
  static Registration* registration = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (registration == nullptr) {
    Ort::InitApi(api);
    runtime_version = version;
    registration = new Registration(base);
  } else if (registration->base != base) {
    return api->CreateStatus(
        ORT_FAIL, "nsa_onnx serves one onnxruntime per process, and another one came first");
  }
  return api->AddCustomOpDomain(options, registration->domain);
}

}  // namespace

uint32_t RuntimeApiVersion() { return runtime_version; }

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
