// For the parser plugin of CANN's ONNX converter (ATC, and graph mode of onnxruntime-cann), which
// tells the converter what operator of its own a node of domain nsa_onnx is. Inputs connect by
// index, and our nodes have them in the converter's order; what is left to do is to map the
// attributes. Each operator registers itself in its folder's onnx_plugin.cc.
#ifndef NSA_ONNX_ASCEND_KERNELS_ONNX_PLUGIN_COPY_INTEGERS_H_
#define NSA_ONNX_ASCEND_KERNELS_ONNX_PLUGIN_COPY_INTEGERS_H_

#include <cstdint>
#include <initializer_list>

#include "attributes.h"
#include "graph/operator.h"

namespace nsa_onnx {

struct Name {
  const char* onnx;
  const char* engine;
};

// Copies integer attributes from the ONNX node to the operator. All of them are required: false if
// one is missing.
inline bool CopyIntegers(const ge::Operator& source, ge::Operator& target,
                         std::initializer_list<Name> names) {
  ge::AscendString text;
  if (source.GetAttr("attribute", text) != ge::GRAPH_SUCCESS || text.GetString() == nullptr)
    return false;
  for (const Name& name : names) {
    int64_t value = 0;
    if (!JsonReader(text.GetString()).Integer(name.onnx, &value)) return false;
    target.SetAttr(name.engine, value);
  }
  return true;
}

}  // namespace nsa_onnx

#endif  // NSA_ONNX_ASCEND_KERNELS_ONNX_PLUGIN_COPY_INTEGERS_H_
