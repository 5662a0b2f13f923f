// A stand-in for onnxruntime: as much of its C interface as nodes of ours ask for when they are
// registered, made and run. It runs one node on arrays that a test owns, so that a sanitizer sees
// every access, and it checks nothing.
#ifndef NSA_ONNX_TESTS_CPU_ONNXRUNTIME_H_
#define NSA_ONNX_TESTS_CPU_ONNXRUNTIME_H_

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

// onnxruntime's own types, of which its users know the names only.
struct OrtStatus {
  OrtErrorCode code;
  std::string message;
};
struct OrtSessionOptions {
  std::map<std::string, std::string> entries;
  std::vector<const OrtCustomOpDomain*> domains;
};
struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp*> ops;
};
struct OrtKernelInfo {
  std::map<std::string, int64_t> ints;
  std::map<std::string, float> floats;
};
struct OrtMemoryInfo {
  bool on_device;
};
struct OrtTensorTypeAndShapeInfo {
  ONNXTensorElementDataType type;
  std::vector<int64_t> dims;
};
struct OrtValue {
  OrtTensorTypeAndShapeInfo info;
  void* data;
  OrtMemoryInfo memory;
};
struct OrtKernelContext {
  std::vector<const OrtValue*> inputs;  // null: left out
  std::vector<OrtValue*> outputs;       // a node that wants another shape of one gets an error
  void* stream;
};

namespace nsa::cpu {

// In the error for a node that wants an output of another shape than the test has.
constexpr const char* kAnotherShape = "the node wants an output of another shape";

// What a library gets that onnxruntime loads.
const OrtApiBase* OnnxruntimeStandIn();

}  // namespace nsa::cpu

#endif  // NSA_ONNX_TESTS_CPU_ONNXRUNTIME_H_
