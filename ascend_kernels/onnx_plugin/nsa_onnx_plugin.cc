// Parser plugin for CANN's ONNX converter (ATC, and graph mode of onnxruntime-cann): tells it which
// graph-engine operator a node of domain nsa_onnx is. Inputs connect by index, and our nodes have
// them in the graph engine's order; what is left to do is to map the attributes.
#include <cstdint>
#include <string_view>

#include "attributes.h"
#include "graph/operator.h"
#include "register/register.h"

namespace domi {
namespace {

struct Name {
  const char* onnx;
  const char* engine;
};

// Copies integer attributes from the ONNX node to the operator. All of them are required.
template <size_t count>
bool CopyIntegers(const ge::Operator& source, ge::Operator& target, const Name (&names)[count]) {
  ge::AscendString text;
  if (source.GetAttr("attribute", text) != ge::GRAPH_SUCCESS || text.GetString() == nullptr)
    return false;
  for (const Name& name : names) {
    int64_t value = 0;
    if (!nsa_onnx::JsonReader(text.GetString()).Integer(name.onnx, &value)) return false;
    target.SetAttr(name.engine, value);
  }
  return true;
}

// The lengths are prefix sums: type 0.
Status ParseNsaCompress(const ge::Operator& source, ge::Operator& target) {
  static const Name kNames[] = {{"compress_block_size", "compressBlockSize"},
                                {"compress_stride", "compressStride"}};
  target.SetAttr("layoutOptional", ge::AscendString("TND"));
  target.SetAttr("actSeqLenType", static_cast<int64_t>(0));
  return CopyIntegers(source, target, kNames) ? SUCCESS : FAILED;
}

// The lengths are each sequence's own: type 1.
Status ParseNsaCompressInfer(const ge::Operator& source, ge::Operator& target) {
  static const Name kNames[] = {{"compress_block_size", "compress_block_size"},
                                {"compress_stride", "compress_stride"},
                                {"page_block_size", "page_block_size"}};
  target.SetAttr("layout", ge::AscendString("TND"));
  target.SetAttr("act_seq_len_type", static_cast<int64_t>(1));
  return CopyIntegers(source, target, kNames) ? SUCCESS : FAILED;
}

}  // namespace

REGISTER_CUSTOM_OP("NsaCompress")
    .FrameworkType(ONNX)
    .OriginOpType({ge::AscendString("nsa_onnx::1::NsaCompress")})
    .ParseParamsByOperatorFn(ParseNsaCompress)
    .ImplyType(ImplyType::TVM);

REGISTER_CUSTOM_OP("NsaCompressWithCache")
    .FrameworkType(ONNX)
    .OriginOpType({ge::AscendString("nsa_onnx::1::NsaCompressInfer")})
    .ParseParamsByOperatorFn(ParseNsaCompressInfer)
    .ImplyType(ImplyType::TVM);

}  // namespace domi
