// See onnxruntime.h. A function that is missing here is null: a node that calls it ends the
// process.
#include "onnxruntime.h"

#include <algorithm>
#include <cstring>
#include <thread>

namespace nsa::cpu {
namespace {

// The version of the headers, and what it says of itself.
constexpr const char* kVersion = "1.24.0";

OrtStatus* Fail(const char* what) { return new OrtStatus{ORT_FAIL, what}; }

// A text, as onnxruntime hands it out: first the size is asked for, then the text.
OrtStatus* CopyText(const std::string& text, char* to, size_t* size) {
  const size_t needed = text.size() + 1;
  if (to != nullptr && *size >= needed) std::memcpy(to, text.c_str(), needed);
  *size = needed;
  return nullptr;
}

template <class T>
OrtStatus* Attribute(const std::map<std::string, T>& all, const char* name, T* value) {
  const auto found = all.find(name);
  if (found == all.end()) return Fail("no such attribute");
  *value = found->second;
  return nullptr;
}

void AddStatus(OrtApi* api) {
  api->CreateStatus = [](OrtErrorCode code, const char* message) noexcept {
    return new OrtStatus{code, message};
  };
  api->GetErrorCode = [](const OrtStatus* status) noexcept { return status->code; };
  api->GetErrorMessage = [](const OrtStatus* status) noexcept { return status->message.c_str(); };
  api->ReleaseStatus = [](OrtStatus* status) noexcept { delete status; };
}

void AddSessions(OrtApi* api) {
  api->HasSessionConfigEntry = [](const OrtSessionOptions* options, const char* key,
                                  int* found) noexcept -> OrtStatus* {
    *found = static_cast<int>(options->entries.count(key));
    return nullptr;
  };
  api->GetSessionConfigEntry = [](const OrtSessionOptions* options, const char* key, char* value,
                                  size_t* size) noexcept {
    return CopyText(options->entries.at(key), value, size);
  };
  api->AddSessionConfigEntry = [](OrtSessionOptions* options, const char* key,
                                  const char* value) noexcept -> OrtStatus* {
    options->entries[key] = value;
    return nullptr;
  };
  api->CreateCustomOpDomain = [](const char*, OrtCustomOpDomain** domain) noexcept -> OrtStatus* {
    *domain = new OrtCustomOpDomain;
    return nullptr;
  };
  api->ReleaseCustomOpDomain = [](OrtCustomOpDomain* domain) noexcept { delete domain; };
  api->CustomOpDomain_Add = [](OrtCustomOpDomain* domain,
                               const OrtCustomOp* op) noexcept -> OrtStatus* {
    domain->ops.push_back(op);
    return nullptr;
  };
  api->AddCustomOpDomain = [](OrtSessionOptions* options,
                              OrtCustomOpDomain* domain) noexcept -> OrtStatus* {
    options->domains.push_back(domain);
    return nullptr;
  };
}

void AddNodes(OrtApi* api) {
  api->KernelInfo_GetNodeName = [](const OrtKernelInfo*, char* name, size_t* size) noexcept {
    return CopyText("node", name, size);
  };
  api->KernelInfoGetAttribute_int64 = [](const OrtKernelInfo* info, const char* name,
                                         int64_t* value) noexcept {
    return Attribute(info->ints, name, value);
  };
  api->KernelInfoGetAttribute_float = [](const OrtKernelInfo* info, const char* name,
                                         float* value) noexcept {
    return Attribute(info->floats, name, value);
  };
  api->KernelContext_GetInputCount = [](const OrtKernelContext* context,
                                        size_t* count) noexcept -> OrtStatus* {
    *count = context->inputs.size();
    return nullptr;
  };
  api->KernelContext_GetInput = [](const OrtKernelContext* context, size_t index,
                                   const OrtValue** value) noexcept -> OrtStatus* {
    *value = context->inputs[index];
    return nullptr;
  };
  api->KernelContext_GetOutput = [](OrtKernelContext* context, size_t index, const int64_t* dims,
                                    size_t rank, OrtValue** value) noexcept -> OrtStatus* {
    *value = context->outputs[index];
    const std::vector<int64_t>& made = (*value)->info.dims;
    if (std::equal(made.begin(), made.end(), dims, dims + rank)) return nullptr;
    return Fail(kAnotherShape);
  };
  api->KernelContext_GetGPUComputeStream = [](const OrtKernelContext* context,
                                              void** stream) noexcept -> OrtStatus* {
    *stream = context->stream;
    return nullptr;
  };
  api->KernelContext_ParallelFor = [](const OrtKernelContext*, void (*body)(void*, size_t),
                                      size_t total, size_t, void* data) noexcept -> OrtStatus* {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < total; ++i) threads.emplace_back(body, data, i);
    for (std::thread& thread : threads) thread.join();
    return nullptr;
  };
}

void AddTensors(OrtApi* api) {
  api->GetTensorTypeAndShape = [](const OrtValue* value,
                                  OrtTensorTypeAndShapeInfo** info) noexcept -> OrtStatus* {
    *info = new OrtTensorTypeAndShapeInfo(value->info);
    return nullptr;
  };
  api->ReleaseTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo* info) noexcept {
    delete info;
  };
  api->GetTensorElementType = [](const OrtTensorTypeAndShapeInfo* info,
                                 ONNXTensorElementDataType* type) noexcept -> OrtStatus* {
    *type = info->type;
    return nullptr;
  };
  api->GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo* info,
                               size_t* count) noexcept -> OrtStatus* {
    *count = info->dims.size();
    return nullptr;
  };
  api->GetDimensions = [](const OrtTensorTypeAndShapeInfo* info, int64_t* dims,
                          size_t count) noexcept -> OrtStatus* {
    std::copy_n(info->dims.begin(), count, dims);
    return nullptr;
  };
  api->GetTensorShapeElementCount = [](const OrtTensorTypeAndShapeInfo* info,
                                       size_t* count) noexcept -> OrtStatus* {
    *count = 1;
    for (const int64_t dim : info->dims) *count *= static_cast<size_t>(dim);
    return nullptr;
  };
  api->GetTensorMutableData = [](OrtValue* value, void** data) noexcept -> OrtStatus* {
    *data = value->data;
    return nullptr;
  };
  api->GetTensorMemoryInfo = [](const OrtValue* value,
                                const OrtMemoryInfo** info) noexcept -> OrtStatus* {
    *info = &value->memory;
    return nullptr;
  };
  api->MemoryInfoGetId = [](const OrtMemoryInfo*, int* id) noexcept -> OrtStatus* {
    *id = 0;
    return nullptr;
  };
  api->MemoryInfoGetDeviceType = [](const OrtMemoryInfo* info,
                                    OrtMemoryInfoDeviceType* type) noexcept {
    *type = info->on_device ? OrtMemoryInfoDeviceType_GPU : OrtMemoryInfoDeviceType_CPU;
  };
}

const OrtApi* Api(uint32_t) noexcept {
  static const OrtApi api = [] {
    OrtApi made{};
    AddStatus(&made);
    AddSessions(&made);
    AddNodes(&made);
    AddTensors(&made);
    return made;
  }();
  return &api;
}

}  // namespace

const OrtApiBase* OnnxruntimeStandIn() {
  static const OrtApiBase base{Api, []() noexcept { return kVersion; }};
  return &base;
}

}  // namespace nsa::cpu
