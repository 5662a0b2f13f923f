// Who computes on an Ascend device: chosen by name or by what the machine has.
#ifndef NSA_ONNX_ORT_EXT_DEVICE_CANN_BACKEND_H_
#define NSA_ONNX_ORT_EXT_DEVICE_CANN_BACKEND_H_

#include <initializer_list>
#include <string>

namespace nsa::cann {

// onnxruntime's name for what runs nodes through CANN.
constexpr const char* kProvider = "CANNExecutionProvider";

enum class BackendChoice { kAuto, kAclnn, kAscendKernels };

// Key of the session configuration entry, and of the environment variable that stands in for it.
constexpr const char* kBackendKey = "nsa_onnx.ascend_backend";
constexpr const char* kBackendVariable = "NSA_ONNX_ASCEND_BACKEND";

// "auto" or "", "aclnn", "ascend_kernels"; throws std::invalid_argument for anything else.
BackendChoice ParseBackend(const std::string& name);

// Of those that have an operator: the one that is asked for, or the first that this machine has.
// Throws CannError that says what each of them lacks.
BackendChoice ChooseBackend(BackendChoice choice, std::initializer_list<BackendChoice> offered);

// One line per backend, in the order of preference: "name: ok" or "name: what it lacks".
std::string DescribeBackends();

}  // namespace nsa::cann

#endif  // NSA_ONNX_ORT_EXT_DEVICE_CANN_BACKEND_H_
