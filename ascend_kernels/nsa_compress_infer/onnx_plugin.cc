// NsaCompressInfer for CANN's ONNX converter (../onnx_plugin): it is NsaCompressWithCache.
#include <cstdint>

#include "copy_integers.h"
#include "graph/operator.h"
#include "register/register.h"

namespace domi {
namespace {

Status Parse(const ge::Operator& source, ge::Operator& target) {
  target.SetAttr("layout", ge::AscendString("TND"));
  target.SetAttr("act_seq_len_type", static_cast<int64_t>(1));  // each sequence's own length
  const bool copied = nsa_onnx::CopyIntegers(source, target,
                                             {{"compress_block_size", "compress_block_size"},
                                              {"compress_stride", "compress_stride"},
                                              {"page_block_size", "page_block_size"}});
  return copied ? SUCCESS : FAILED;
}

}  // namespace

REGISTER_CUSTOM_OP("NsaCompressWithCache")
    .FrameworkType(ONNX)
    .OriginOpType({ge::AscendString("nsa_onnx::1::NsaCompressInfer")})
    .ParseParamsByOperatorFn(Parse)
    .ImplyType(ImplyType::TVM);

}  // namespace domi
