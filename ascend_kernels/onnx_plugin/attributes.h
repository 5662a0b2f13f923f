// Integer attributes of an ONNX node, as CANN's parser hands them to a plugin: JSON such as
//     {"attribute": [{"i": 32, "name": "compress_block_size", "type": 2}, ...], "name": ..., ...}
// A model file is untrusted, and an exception must not leave a plugin: this reader throws nothing,
// reads nothing outside of the text, and says false where it does not understand.
#ifndef NSA_ONNX_ASCEND_KERNELS_ONNX_PLUGIN_ATTRIBUTES_H_
#define NSA_ONNX_ASCEND_KERNELS_ONNX_PLUGIN_ATTRIBUTES_H_

#include <cstdint>
#include <string_view>

namespace nsa_onnx {

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  // The value of the integer attribute `name` of the node.
  bool Integer(std::string_view name, int64_t* value) {
    bool found = false;
    return Object([&](std::string_view key) {
             if (key != "attribute") return SkipValue(0);
             return Array([&] {
               Attribute attribute;
               if (!ReadAttribute(&attribute)) return false;
               if (attribute.name == name && attribute.has_value) {
                 found = true;
                 *value = attribute.value;
               }
               return true;
             });
           }) &&
           found;
  }

 private:
  struct Attribute {
    std::string_view name;
    int64_t value = 0;
    bool has_value = false;
  };

  static constexpr int kDepth = 64;

  bool ReadAttribute(Attribute* attribute) {
    return Object([&](std::string_view key) {
      if (key == "name") return String(&attribute->name);
      if (key == "i") return attribute->has_value = Number(&attribute->value);
      return SkipValue(0);
    });
  }

  void SkipSpace() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || (text_[at_] >= '\t' && text_[at_] <= '\r'))) {
      ++at_;
    }
  }

  bool Take(char expected) {
    SkipSpace();
    if (at_ >= text_.size() || text_[at_] != expected) return false;
    ++at_;
    return true;
  }

  // The characters between two quotes, escapes as they stand.
  bool String(std::string_view* value) {
    if (!Take('"')) return false;
    const size_t begin = at_;
    for (; at_ < text_.size(); ++at_) {
      if (text_[at_] == '"') {
        *value = text_.substr(begin, at_++ - begin);
        return true;
      }
      if (text_[at_] == '\\') ++at_;
    }
    return false;
  }

  // A number, or a string of one: protobuf's own JSON writes 64-bit integers that way.
  bool Number(int64_t* value) {
    SkipSpace();
    const bool quoted = Take('"');
    const bool negative = at_ < text_.size() && text_[at_] == '-';
    if (negative) ++at_;
    const size_t begin = at_;
    int64_t number = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      if (at_ - begin >= 18) return false;  // no attribute of ours comes near
      number = number * 10 + (text_[at_] - '0');
    }
    if (at_ == begin) return false;
    *value = negative ? -number : number;
    return !quoted || Take('"');
  }

  template <typename Member>
  bool Object(Member member) {
    if (!Take('{')) return false;
    if (Take('}')) return true;
    do {
      std::string_view key;
      if (!String(&key) || !Take(':') || !member(key)) return false;
    } while (Take(','));
    return Take('}');
  }

  template <typename Element>
  bool Array(Element element) {
    if (!Take('[')) return false;
    if (Take(']')) return true;
    do {
      if (!element()) return false;
    } while (Take(','));
    return Take(']');
  }

  bool SkipValue(int depth) {
    SkipSpace();
    if (depth > kDepth || at_ >= text_.size()) return false;
    std::string_view ignored;
    switch (text_[at_]) {
      case '{':
        return Object([&](std::string_view) { return SkipValue(depth + 1); });
      case '[':
        return Array([&] { return SkipValue(depth + 1); });
      case '"':
        return String(&ignored);
      default:  // a number, true, false, null
        const size_t begin = at_;
        while (at_ < text_.size() && std::string_view(",]} \t\n\r").find(text_[at_]) == text_.npos)
          ++at_;
        return at_ > begin;
    }
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace nsa_onnx

#endif  // NSA_ONNX_ASCEND_KERNELS_ONNX_PLUGIN_ATTRIBUTES_H_
