// The ascend_kernels backend: our own kernels, from libnsa_ascend_kernels.so. It takes every legal
// call; the limits are the contract's.
#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>

#include "ascend_kernels/launch.h"
#include "cann/backend.h"

namespace nsa::cann {
namespace {

constexpr const char* kLibrary = "libnsa_ascend_kernels.so";
// Names a file to be used instead of the search.
constexpr const char* kLibraryVariable = "NSA_ONNX_ASCEND_KERNELS";

static_assert(sizeof(NsaAscendRowRun) == sizeof(RowRun) &&
                  offsetof(NsaAscendRowRun, rows) == offsetof(RowRun, rows) &&
                  offsetof(NsaAscendRowRun, first_token) == offsetof(RowRun, first_token),
              "handed over as they are");
static_assert(sizeof(NsaAscendSlotWrite) == sizeof(SlotWrite) &&
                  offsetof(NsaAscendSlotWrite, slot) == offsetof(SlotWrite, slot) &&
                  offsetof(NsaAscendSlotWrite, runs) == offsetof(SlotWrite, runs),
              "handed over as they are");

struct Kernels {
  decltype(&nsa_ascend_abi) abi;
  decltype(&nsa_ascend_compress_plan) compress_plan;
  decltype(&nsa_ascend_infer_plan) infer_plan;
  decltype(&nsa_ascend_plan_blocks) plan_blocks;
  decltype(&nsa_ascend_compress) compress;
  decltype(&nsa_ascend_infer) infer;
};

// The folder of this very library, with a slash; empty if the loader does not know.
std::string OwnFolder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&OwnFolder), &info) == 0) return "";
  const std::string path = info.dli_fname == nullptr ? "" : info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

// The named file; else the one beside this library; else the loader's search.
void* Open() {
  const char* named = std::getenv(kLibraryVariable);
  std::vector<std::string> places;
  if (named != nullptr && *named != '\0') {
    places = {named};
  } else {
    const std::string folder = OwnFolder();
    if (!folder.empty()) places.push_back(folder + kLibrary);
    places.push_back(kLibrary);
  }
  std::string reasons;
  for (const std::string& place : places) {
    // Now: a library that does not fit this CANN is found here and not in the middle of a launch.
    if (void* handle = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    const char* reason = dlerror();
    reasons += (reasons.empty() ? "" : "; ") + std::string(reason ? reason : "?");
  }
  throw CannError("cannot load " + std::string(kLibrary) + " (" + reasons + "): it is built with " +
                  "CANN from ascend_kernels/, and " + kLibraryVariable + " may name it");
}

template <class Function>
void Load(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function == nullptr) throw CannError(std::string(kLibrary) + " has no " + name);
}

Kernels LoadKernels() {
  GetRuntime();  // first: without CANN, that is what is missing
  Kernels kernels{};
  void* library = Open();
  Load(library, "nsa_ascend_abi", &kernels.abi);
  if (const int32_t abi = kernels.abi(); abi != NSA_ASCEND_ABI) {
    throw CannError(std::string(kLibrary) + " has interface version " + std::to_string(abi) +
                    ", this nsa_onnx needs " + std::to_string(NSA_ASCEND_ABI) + ": build it anew");
  }
  Load(library, "nsa_ascend_compress_plan", &kernels.compress_plan);
  Load(library, "nsa_ascend_infer_plan", &kernels.infer_plan);
  Load(library, "nsa_ascend_plan_blocks", &kernels.plan_blocks);
  Load(library, "nsa_ascend_compress", &kernels.compress);
  Load(library, "nsa_ascend_infer", &kernels.infer);
  return kernels;
}

// All devices of a machine are of one kind. Asked at the first launch, when CANN is initialized.
int64_t Cores() {
  static const int64_t cores = [] {
    int64_t count = 0;
    Require(GetRuntime().aclGetDeviceCapability(0, kAclVectorCoreNum, &count),
            "aclGetDeviceCapability");
    return std::max<int64_t>(count, 1);
  }();
  return cores;
}

// The plan of a call: its size is known when it has been made.
template <class Plan, class Call>
std::vector<int64_t> MakePlan(Plan plan, const Call& call) {
  constexpr size_t kUsualWords = 4096;
  std::vector<int64_t> words(kUsualWords);
  while (true) {
    const int64_t count = plan(&call, Cores(), words.data(), static_cast<int64_t>(words.size()));
    if (count < 0) throw CannError("no memory for the plan of a launch");
    const bool complete = static_cast<size_t>(count) <= words.size();
    words.resize(static_cast<size_t>(count));
    if (complete) return words;
  }
}

int32_t KernelType(cpu::DType dtype) {
  return dtype == cpu::DType::kFloat16 ? NSA_ASCEND_FLOAT16 : NSA_ASCEND_BFLOAT16;
}

class AscendKernelsBackend : public Backend {
 public:
  AscendKernelsBackend() : kernels_(LoadKernels()) {}

  const char* name() const override { return "ascend_kernels"; }

  void RequireInferBlock(int64_t) const override {}

  void Compress(const CompressRun& run, Launch& launch) const override {
    const int32_t type = KernelType(run.dtype);
    const auto* runs = reinterpret_cast<const NsaAscendRowRun*>(run.plan->data());
    const NsaAscendCompress call{type,      run.tokens, run.heads, run.dim,
                                 run.block, run.stride, runs,      Size(*run.plan)};
    const std::vector<int64_t> plan = MakePlan(kernels_.compress_plan, call);
    const int64_t blocks = kernels_.plan_blocks(plan.data());
    if (blocks == 0) return;
    const void* uploaded = launch.Upload(plan.data(), plan.size() * sizeof(int64_t));
    Require(kernels_.compress(launch.stream(), type, run.input, run.weight, run.output, uploaded,
                              blocks),
            "nsa_ascend_compress");
  }

  void Infer(const InferRun& run, Launch& launch) const override {
    const int32_t type = KernelType(run.dtype);
    const auto* writes = reinterpret_cast<const NsaAscendSlotWrite*>(run.plan->data());
    const NsaAscendInfer call{type,      run.block_num, run.page, run.heads,      run.dim,
                              run.block, run.slots,     writes,   Size(*run.plan)};
    const std::vector<int64_t> plan = MakePlan(kernels_.infer_plan, call);
    const int64_t blocks = kernels_.plan_blocks(plan.data());
    if (blocks == 0) return;
    const void* uploaded = launch.Upload(plan.data(), plan.size() * sizeof(int64_t));
    run.cache_touched = true;
    Require(
        kernels_.infer(launch.stream(), type, run.input, run.weight, run.cache, uploaded, blocks),
        "nsa_ascend_infer");
  }

 private:
  template <class Item>
  static int64_t Size(const std::vector<Item>& items) {
    return static_cast<int64_t>(items.size());
  }

  Kernels kernels_;
};

}  // namespace

const Backend& GetAscendKernelsBackend() {
  static const AscendKernelsBackend backend;
  return backend;
}

}  // namespace nsa::cann
