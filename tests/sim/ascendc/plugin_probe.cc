// Linked with the ONNX parser plugin's sources for a test: what they register, what they make of
// attributes.
#include <string>
#include <vector>

#include "graph/operator.h"
#include "register/register.h"

// Parses `attributes` (JSON) with the plugin for `origin`; a line per result, "failed" or "not
// registered". The text lives until the next call.
extern "C" __attribute__((visibility("default"))) const char* plugin_probe(const char* origin,
                                                                           const char* attributes) {
  static std::string result;
  result = "not registered";
  for (const domi::OpRegistrationData& entry : domi::Registered()) {
    if (!entry.is_onnx || entry.origins != std::vector<std::string>{origin}) continue;
    ge::Operator source, target;
    if (attributes) source.SetAttr("attribute", ge::AscendString(attributes));
    if (entry.parse(source, target) != domi::SUCCESS) return (result = "failed").c_str();
    result = entry.type;
    for (const auto& [name, value] : target.integers())
      result += "\n" + name + "=" + std::to_string(value);
    for (const auto& [name, value] : target.strings())
      result += "\n" + name + "=" + value.GetString();
  }
  return result.c_str();
}
