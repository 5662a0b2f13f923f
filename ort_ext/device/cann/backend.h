// The backends of an Ascend device, which are two ways of computing there: our own kernels
// (ascend_kernels) and the vendor's operators (aclnn). A session asks for one by name, or takes
// what the machine has.
#ifndef NSA_ONNX_ORT_EXT_DEVICE_CANN_BACKEND_H_
#define NSA_ONNX_ORT_EXT_DEVICE_CANN_BACKEND_H_

#include <cstddef>
#include <string>
#include <tuple>
#include <vector>

namespace nsa::cann {

// onnxruntime's name for what runs nodes through CANN.
constexpr const char* kProvider = "CANNExecutionProvider";

enum class BackendChoice { kAuto, kAclnn, kAscendKernels };

// Key of the session configuration entry, and of the environment variable that stands in for it.
constexpr const char* kBackendKey = "nsa_onnx.ascend_backend";
constexpr const char* kBackendVariable = "NSA_ONNX_ASCEND_BACKEND";

// "auto" or "", "aclnn", "ascend_kernels"; throws std::invalid_argument for anything else.
BackendChoice ParseBackend(const std::string& name);

// Key of the session configuration entry that says whether indices on the device are fetched and
// checked on the host before they are used ("1", the default), or taken as they are ("0").
constexpr const char* kCheckKey = "nsa_onnx.check_device_indices";

// "1" or "", "0"; throws std::invalid_argument for anything else.
bool ParseCheck(const std::string& value);

// What a session says of its nodes on the device.
struct SessionChoice {
  BackendChoice backend;
  bool checks_indices;

  bool operator<(const SessionChoice& other) const {
    return std::tie(backend, checks_indices) < std::tie(other.backend, other.checks_indices);
  }
};

// A backend that has some operator.
struct Offer {
  BackendChoice backend;
  void (*require)();  // throws CannError that says what this machine lacks for it
};

// Of an operator's offers, the place of the one that is asked for, or of the first in the order of
// preference that this machine has. Throws CannError that says what each backend lacks.
size_t ChooseOffer(BackendChoice choice, const std::vector<Offer>& offers);

// Given the offers of all operators: one line per backend, in the order of preference, "name: ok"
// or "name: what it lacks".
std::string DescribeBackends(const std::vector<Offer>& offers);

}  // namespace nsa::cann

#endif  // NSA_ONNX_ORT_EXT_DEVICE_CANN_BACKEND_H_
