// The fuzzer's calls as nodes of a model: on the CPU, and on the simulated CANN (tests/sim), whose
// libraries LD_LIBRARY_PATH must name.
//
// On the device it is judged what is refused, what is written, and whether the device finds a
// fault: an address outside its array, work that outlives its memory. Numbers are not:
// tests/test_cann.py has them.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

#include "device/cann/backend.h"
#include "fuzzer.h"
#include "onnxruntime.h"
#include "tests/sim/acl.h"

namespace nsa::cpu::fuzz {
namespace {

// libascendcl.so's functions that a host of ours calls. Loaded by name, as our library does it.
struct Acl {
  decltype(&aclInit) init;
  decltype(&aclrtSetDevice) set_device;
  decltype(&aclrtCreateStream) create_stream;
  decltype(&aclrtDestroyStream) destroy_stream;
  decltype(&aclrtSynchronizeStream) synchronize;
  decltype(&aclrtMalloc) allocate;
  decltype(&aclrtFree) free;
  decltype(&aclrtMemcpy) copy;
  decltype(&aclGetRecentErrMsg) message;
};

const Acl& GetAcl() {
  static const Acl acl = [] {
    void* library = dlopen("libascendcl.so", RTLD_NOW);
    if (library == nullptr) Fail(dlerror());
    const auto load = [&](const char* name, auto* function) {
      *function =
          reinterpret_cast<std::remove_reference_t<decltype(*function)>>(dlsym(library, name));
      if (*function == nullptr) Fail(dlerror());
    };
    Acl loaded{};
    load("aclInit", &loaded.init);
    load("aclrtSetDevice", &loaded.set_device);
    load("aclrtCreateStream", &loaded.create_stream);
    load("aclrtDestroyStream", &loaded.destroy_stream);
    load("aclrtSynchronizeStream", &loaded.synchronize);
    load("aclrtMalloc", &loaded.allocate);
    load("aclrtFree", &loaded.free);
    load("aclrtMemcpy", &loaded.copy);
    load("aclGetRecentErrMsg", &loaded.message);
    loaded.init(nullptr);
    return loaded;
  }();
  return acl;
}

void Require(aclError status, const char* what) {
  if (status == ACL_SUCCESS) return;
  const char* message = GetAcl().message();
  Fail(std::string("the device fails in ") + what + ": " + (message ? message : "no message"));
}

// A thread of the host: its device and its stream.
struct Host {
  Host() {
    Require(GetAcl().set_device(0), "aclrtSetDevice");
    Require(GetAcl().create_stream(&stream), "aclrtCreateStream");
  }
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;
  ~Host() { GetAcl().destroy_stream(stream); }

  aclrtStream stream = nullptr;
};

aclrtStream OwnStream() {
  thread_local const Host host;
  return host.stream;
}

// An array, as a value of onnxruntime's in the host's memory or the device's.
class Value {
 public:
  Value(Memory* array, ONNXTensorElementDataType type, bool on_device)
      : array_(array), value_{{type, array->dims()}, array->data(), {on_device}} {
    if (!on_device) return;
    // At least an element: no allocation of the device's is empty.
    const size_t bytes = array->size() * array->item();
    Require(GetAcl().allocate(&value_.data, std::max<size_t>(bytes, 16), ACL_MEM_MALLOC_HUGE_FIRST),
            "aclrtMalloc");
    Copy(value_.data, array->data(), bytes, ACL_MEMCPY_HOST_TO_DEVICE);
  }
  Value(const Value&) = delete;
  Value& operator=(const Value&) = delete;
  ~Value() {
    if (value_.memory.on_device) GetAcl().free(value_.data);
  }

  Memory* array() const { return array_; }
  OrtValue* get() { return &value_; }
  void Download() {
    if (!value_.memory.on_device) return;
    const size_t bytes = array_->size() * array_->item();
    Copy(array_->data(), value_.data, bytes, ACL_MEMCPY_DEVICE_TO_HOST);
  }

 private:
  static void Copy(void* to, const void* from, size_t bytes, aclrtMemcpyKind kind) {
    Require(GetAcl().copy(to, bytes, from, bytes, kind), "aclrtMemcpy");
  }

  Memory* array_;
  OrtValue value_;
};

struct Target {
  const char* name;
  const char* provider;
  const char* backend;  // of nsa_onnx.ascend_backend

  bool on_device() const { return provider == cann::kProvider; }
};
constexpr const char* kCpu = "CPUExecutionProvider";
constexpr Target kTargets[] = {{"as a node on the CPU", kCpu, ""},
                               {"as a node on aclnn", cann::kProvider, "aclnn"},
                               {"as a node on ascend_kernels", cann::kProvider, "ascend_kernels"}};

ONNXTensorElementDataType OwnType(DType dtype) {
  return dtype == DType::kFloat16 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
                                  : ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
}

// What the library registers for `target` of operator `name`.
const OrtCustomOp* FindOp(const Target& target, const std::string& name, DType dtype) {
  OrtSessionOptions options{{{cann::kBackendKey, target.backend}}, {}};
  if (OrtStatus* status = RegisterCustomOps(&options, OnnxruntimeStandIn())) Fail(status->message);
  for (const OrtCustomOpDomain* domain : options.domains) {
    for (const OrtCustomOp* op : domain->ops) {
      if (op->GetName(op) == name &&
          op->GetExecutionProviderType(op) == std::string(target.provider) &&
          op->GetInputType(op, 0) == OwnType(dtype)) {
        return op;
      }
    }
  }
  Fail("the library has no operator " + name);
}

// 0, 1 or kCannot, and the message as the C functions give it.
int Told(OrtStatus* raw, char* error, int64_t size) {
  if (raw == nullptr) return 0;
  const std::unique_ptr<OrtStatus> status(raw);
  if (error != nullptr)
    std::snprintf(error, static_cast<size_t>(size), "%s", status->message.c_str());
  return status->code == ORT_EP_FAIL ? kCannot : 1;
}

// A node that has been made.
struct Made {
  const OrtCustomOp* op;
  void* kernel = nullptr;
  ~Made() {
    if (kernel != nullptr) op->KernelDestroy(kernel);
  }
};

int RunNode(const Target& target, const Call& call, char* error, int64_t size) {
  const Node& node = call.node;
  OrtKernelInfo info;
  for (const auto& [name, value] : node.attributes) {
    if (const auto* number = std::get_if<int64_t>(&value)) {
      info.ints[name] = *number;
    } else {
      info.floats[name] = static_cast<float>(std::get<double>(value));
    }
  }
  const aclrtStream stream = target.on_device() ? OwnStream() : nullptr;
  Made made{FindOp(target, node.op, node.dtype)};
  const OrtCustomOp& op = *made.op;
  const OrtApi* api = OnnxruntimeStandIn()->GetApi(ORT_API_VERSION);
  if (OrtStatus* status = op.CreateKernelV2(&op, api, &info, &made.kernel)) {
    return Told(status, error, size);
  }
  // An input that is an output as well is updated in place.
  std::vector<std::unique_ptr<Value>> outputs, inputs;
  OrtKernelContext context{{}, {}, stream};
  for (size_t i = 0; i < call.outputs.size(); ++i) {
    const auto type = op.GetOutputType(&op, i);
    outputs.push_back(std::make_unique<Value>(call.outputs[i], type, target.on_device()));
    context.outputs.push_back(outputs.back()->get());
  }
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    const auto same = [&](const auto& output) { return output->array() == node.inputs[i]; };
    const auto updated = std::find_if(outputs.begin(), outputs.end(), same);
    if (updated != outputs.end() || node.inputs[i] == nullptr) {
      context.inputs.push_back(updated == outputs.end() ? nullptr : (*updated)->get());
      continue;
    }
    const bool on_host = op.GetInputMemoryType(&op, i) == OrtMemTypeCPUInput;
    inputs.push_back(std::make_unique<Value>(node.inputs[i], op.GetInputType(&op, i),
                                             target.on_device() && !on_host));
    context.inputs.push_back(inputs.back()->get());
  }
  OrtStatus* outcome = op.KernelComputeV2(made.kernel, &context);
  // Nodes make their outputs when all else has been checked: this one has taken the call.
  const bool taken = !call.legal && outcome != nullptr &&
                     outcome->message.find(kAnotherShape) != std::string::npos;
  const int told = Told(outcome, error, size);
  const int status = taken ? 0 : told;
  if (target.on_device()) Require(GetAcl().synchronize(stream), "the node's work");
  for (const auto& output : outputs) output->Download();
  return status;
}

const bool registered = [] {
  for (const Target& target : kTargets) {
    Ways().push_back(
        {target.name, !target.on_device(), [&target](const Call& call, char* error, int64_t size) {
           return RunNode(target, call, error, size);
         }});
  }
  return true;
}();

}  // namespace
}  // namespace nsa::cpu::fuzz
