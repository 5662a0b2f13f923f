// Registration of parser plugins, as declared by CANN; here a list that a test can read. Not CANN.
#ifndef NSA_ONNX_TESTS_SIM_ASCENDC_GRAPH_ENGINE_REGISTER_H_
#define NSA_ONNX_TESTS_SIM_ASCENDC_GRAPH_ENGINE_REGISTER_H_

#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "graph/operator.h"

namespace domi {

using Status = uint32_t;
constexpr Status SUCCESS = 0;
constexpr Status FAILED = 0xFFFFFFFF;
enum FrameworkType { CAFFE = 0, TENSORFLOW = 3, ONNX = 5 };
enum class ImplyType : unsigned int { BUILDIN = 0, TVM };

using ParseParamByOpFunc = std::function<Status(const ge::Operator&, ge::Operator&)>;

class OpRegistrationData {
 public:
  explicit OpRegistrationData(const char* type) : type(type) {}
  OpRegistrationData& FrameworkType(const domi::FrameworkType& framework) {
    is_onnx = framework == ONNX;
    return *this;
  }
  OpRegistrationData& OriginOpType(const std::vector<ge::AscendString>& types) {
    for (const ge::AscendString& origin : types) origins.push_back(origin.GetString());
    return *this;
  }
  OpRegistrationData& ParseParamsByOperatorFn(const ParseParamByOpFunc& function) {
    parse = function;
    return *this;
  }
  OpRegistrationData& ImplyType(const domi::ImplyType&) { return *this; }

  std::string type;
  bool is_onnx = false;
  std::vector<std::string> origins;
  ParseParamByOpFunc parse;
};

inline std::vector<OpRegistrationData>& Registered() {
  static std::vector<OpRegistrationData> all;
  return all;
}

struct OpReceiver {
  OpReceiver(OpRegistrationData& data) { Registered().push_back(data); }
};

}  // namespace domi

#define REGISTER_CUSTOM_OP(name) REGISTER_CUSTOM_OP_UNIQUE(__COUNTER__, name)
#define REGISTER_CUSTOM_OP_UNIQUE(counter, name) REGISTER_CUSTOM_OP_NAMED(counter, name)
#define REGISTER_CUSTOM_OP_NAMED(counter, name) \
  static OpReceiver register_op_##counter = OpRegistrationData(name)

#endif  // NSA_ONNX_TESTS_SIM_ASCENDC_GRAPH_ENGINE_REGISTER_H_
