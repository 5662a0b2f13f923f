// See library.h.
#include "device/cann/library.h"

#include <dlfcn.h>

namespace nsa::cann {
namespace {

// Handles are never closed: CANN's libraries are not made to be unloaded.
void* Open(const char* name) {
  // Lazy: CANN's libraries need others for functions that we never call.
  if (void* handle = dlopen(name, RTLD_LAZY | RTLD_LOCAL)) return handle;
  const char* reason = dlerror();
  throw CannError(std::string("cannot load CANN's ") + name + " (" + (reason ? reason : "?") +
                  "): is CANN installed, and its set_env.sh sourced in this shell?");
}

void* Symbol(void* library, const char* library_name, const char* name) {
  if (void* symbol = dlsym(library, name)) return symbol;
  throw CannError(std::string("CANN's ") + library_name + " has no " + name +
                  ": this CANN is too old (docs/ascend.md has the versions)");
}

#define NSA_LOAD(function, result, parameters) \
  loaded.function = reinterpret_cast<result(*) parameters>(Symbol(library, name, #function));

Acl LoadAcl() {
  Acl loaded{};
  const char* name = "libascendcl.so";
  void* library = Open(name);
  NSA_ACL_FUNCTIONS(NSA_LOAD)
  return loaded;
}

OperatorBase LoadOperatorBase() {
  OperatorBase loaded{};
  const char* name = "libnnopbase.so";
  void* library = Open(name);
  NSA_NNOPBASE_FUNCTIONS(NSA_LOAD)
  return loaded;
}

#undef NSA_LOAD

// CANN's message on this thread; reading it takes it away.
std::string TakeMessage() {
  const char* message = GetAcl().aclGetRecentErrMsg();
  return message == nullptr ? "" : message;
}

}  // namespace

// A constructor that throws is run again by the next call.
const Acl& GetAcl() {
  static const Acl acl = LoadAcl();
  return acl;
}

const OperatorBase& GetOperatorBase() {
  static const OperatorBase base = LoadOperatorBase();
  return base;
}

OperatorFunctions FindOperator(const std::string& first_name, const std::string& name) {
  // Since CANN 8.5 the operators of large models lie in a library of their own.
  if (void* apart = dlopen("libopapi_transformer.so", RTLD_LAZY | RTLD_LOCAL)) {
    const OperatorFunctions found{dlsym(apart, first_name.c_str()), dlsym(apart, name.c_str())};
    if (found.first && found.second) return found;
  }
  const char* library_name = "libopapi.so";
  void* library = Open(library_name);
  return {Symbol(library, library_name, first_name.c_str()),
          Symbol(library, library_name, name.c_str())};
}

void Require(Status status, const char* call) {
  if (status == 0) return;
  const std::string message = TakeMessage();
  throw CannError(std::string(call) + " failed with " + std::to_string(status) +
                  (message.empty() ? "" : ": " + message));
}

void RequireHandle(const void* handle, const char* call) {
  if (handle != nullptr) return;
  const std::string message = TakeMessage();
  throw CannError(std::string(call) + " failed" + (message.empty() ? "" : ": " + message));
}

void Forget(Status status) {
  if (status != 0) TakeMessage();
}

}  // namespace nsa::cann
