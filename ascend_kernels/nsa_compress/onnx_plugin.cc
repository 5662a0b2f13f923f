// NsaCompress for CANN's ONNX converter (../onnx_plugin): it is the operator of the same name.
#include <cstdint>

#include "copy_integers.h"
#include "graph/operator.h"
#include "register/register.h"

namespace domi {
namespace {

Status Parse(const ge::Operator& source, ge::Operator& target) {
  target.SetAttr("layoutOptional", ge::AscendString("TND"));
  target.SetAttr("actSeqLenType", static_cast<int64_t>(0));  // the lengths are prefix sums
  const bool copied = nsa_onnx::CopyIntegers(
      source, target,
      {{"compress_block_size", "compressBlockSize"}, {"compress_stride", "compressStride"}});
  return copied ? SUCCESS : FAILED;
}

}  // namespace

REGISTER_CUSTOM_OP("NsaCompress")
    .FrameworkType(ONNX)
    .OriginOpType({ge::AscendString("nsa_onnx::1::NsaCompress")})
    .ParseParamsByOperatorFn(Parse)
    .ImplyType(ImplyType::TVM);

}  // namespace domi
