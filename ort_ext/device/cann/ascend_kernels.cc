// See ascend_kernels.h.
#include "device/cann/ascend_kernels.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <string>

namespace nsa::cann {
namespace {

constexpr const char* kLibrary = "libnsa_ascend_kernels.so";
// Names a file to be used instead of the search.
constexpr const char* kLibraryVariable = "NSA_ONNX_ASCEND_KERNELS";

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

struct Library {
  void* handle;
  decltype(&nsa_ascend_plan_blocks) plan_blocks;
};

Library LoadLibrary() {
  GetAcl();  // first: without CANN, that is what is missing
  Library library{Open(), nullptr};
  decltype(&nsa_ascend_abi) ask_abi = nullptr;
  Load(library.handle, "nsa_ascend_abi", &ask_abi);
  if (const int32_t abi = ask_abi(); abi != NSA_ASCEND_ABI) {
    throw CannError(std::string(kLibrary) + " has interface version " + std::to_string(abi) +
                    ", this nsa_onnx needs " + std::to_string(NSA_ASCEND_ABI) + ": build it anew");
  }
  Load(library.handle, "nsa_ascend_plan_blocks", &library.plan_blocks);
  return library;
}

// Loaded once; a constructor that throws is run again by the next call.
const Library& GetLibrary() {
  static const Library library = LoadLibrary();
  return library;
}

}  // namespace

void* KernelFunction(const std::string& name) {
  void* function = nullptr;
  Load(GetLibrary().handle, name.c_str(), &function);
  return function;
}

int64_t PlanBlocks(const std::vector<int64_t>& plan) {
  return GetLibrary().plan_blocks(plan.data());
}

// All devices of a machine are of one kind. Asked at the first launch, when CANN is initialized.
int64_t VectorCores() {
  static const int64_t cores = [] {
    int64_t count = 0;
    Require(GetAcl().aclGetDeviceCapability(0, kAclVectorCoreNum, &count),
            "aclGetDeviceCapability");
    return std::max<int64_t>(count, 1);
  }();
  return cores;
}

int32_t KernelType(DType dtype) {
  return dtype == DType::kFloat16 ? NSA_ASCEND_FLOAT16 : NSA_ASCEND_BFLOAT16;
}

}  // namespace nsa::cann
