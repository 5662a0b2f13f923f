// Tensor descriptors and data buffers of aclop operators: libascendcl.so makes them,
// libacl_op_compiler.so reads them.
#ifndef NSA_ONNX_TESTS_SIM_DESCRIPTORS_H_
#define NSA_ONNX_TESTS_SIM_DESCRIPTORS_H_

#include <vector>

#include "acl.h"

struct aclTensorDesc {
  aclDataType type;
  aclFormat format;
  std::vector<std::int64_t> dims;
  std::vector<std::byte> constant;  // host data of a constant input
  bool is_constant;
  bool on_host;  // the buffer is host memory, read when the operator is called
};

struct aclDataBuffer {
  void* data;
  std::size_t size;
};

#endif  // NSA_ONNX_TESTS_SIM_DESCRIPTORS_H_
