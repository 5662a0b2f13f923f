// Fills the messages of nsa_spec.h: every "{}" takes the next value, as Python's str.format does.
#ifndef NSA_ONNX_PLAN_MESSAGE_H_
#define NSA_ONNX_PLAN_MESSAGE_H_

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace nsa {

inline std::string Message(std::string_view text, std::initializer_list<int64_t> values) {
  std::string result;
  for (int64_t value : values) {
    const size_t hole = text.find("{}");
    if (hole == std::string_view::npos) break;
    result.append(text.substr(0, hole)).append(std::to_string(value));
    text.remove_prefix(hole + 2);
  }
  return result.append(text);
}

}  // namespace nsa

#endif  // NSA_ONNX_PLAN_MESSAGE_H_
