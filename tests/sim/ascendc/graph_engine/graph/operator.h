// The few declarations of CANN's graph engine that the ONNX parser plugin needs, and enough behind
// them to see what it does. Not CANN.
#ifndef NSA_ONNX_TESTS_SIM_ASCENDC_GRAPH_ENGINE_OPERATOR_H_
#define NSA_ONNX_TESTS_SIM_ASCENDC_GRAPH_ENGINE_OPERATOR_H_

#include <cstdint>
#include <map>
#include <string>

namespace ge {

using graphStatus = uint32_t;
constexpr graphStatus GRAPH_SUCCESS = 0;
constexpr graphStatus GRAPH_FAILED = 0xFFFFFFFF;

class AscendString {
 public:
  AscendString() = default;
  AscendString(const char* text) : text_(text), set_(true) {}
  const char* GetString() const { return set_ ? text_.c_str() : nullptr; }

 private:
  std::string text_;
  bool set_ = false;
};

class Operator {
 public:
  graphStatus GetAttr(const char* name, AscendString& value) const {
    const auto found = strings_.find(name);
    if (found == strings_.end()) return GRAPH_FAILED;
    value = found->second;
    return GRAPH_SUCCESS;
  }
  Operator& SetAttr(const char* name, int64_t value) {
    integers_[name] = value;
    return *this;
  }
  Operator& SetAttr(const char* name, const AscendString& value) {
    strings_[name] = value;
    return *this;
  }

  const std::map<std::string, int64_t>& integers() const { return integers_; }
  const std::map<std::string, AscendString>& strings() const { return strings_; }

 private:
  std::map<std::string, int64_t> integers_;
  std::map<std::string, AscendString> strings_;
};

}  // namespace ge

#endif  // NSA_ONNX_TESTS_SIM_ASCENDC_GRAPH_ENGINE_OPERATOR_H_
