// See aclnn.h.
#include "device/cann/aclnn.h"

#include "nsa_spec.h"

namespace nsa::cann {

void RefuseAclnn(const std::string& what) {
  throw CannError("the aclnn backend " + what +
                  ": use the ascend_kernels backend, or device=\"cpu\"");
}

void RequireCountable(const char* what, int64_t rows, int64_t row) {
  if (rows <= spec::kVendorMaxElements / row) return;
  RefuseAclnn(std::string("counts elements in 32 bits, ") + what + " has " + std::to_string(rows) +
              " rows of " + std::to_string(row));
}

char* TndLayout() {
  static char layout[] = "TND";
  return layout;
}

DataType AclType(DType dtype) { return dtype == DType::kFloat16 ? kAclFloat16 : kAclBFloat16; }

IntArray MakeIntArray(const int64_t* values, int64_t size) {
  IntArray array(GetOperatorBase().aclCreateIntArray(values, static_cast<uint64_t>(size)));
  RequireHandle(array.get(), "aclCreateIntArray");
  return array;
}

}  // namespace nsa::cann
