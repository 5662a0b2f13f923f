// What all operators do with the lengths of their sequences, or the prefix sums of these.
#ifndef NSA_ONNX_PLAN_LENGTHS_H_
#define NSA_ONNX_PLAN_LENGTHS_H_

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace nsa {

// What the caller has, each element read once.
std::vector<int64_t> CopyLengths(const int64_t* values, int64_t count);

// The words for lengths that stand where prefix sums up to `total` are asked for (_lengths_hint);
// empty if others are wrong there. None is negative.
std::string_view LengthsHint(const std::vector<int64_t>& ends, std::optional<int64_t> total);

// Those for prefix sums that stand where lengths of at most `longest` are asked for.
std::string_view PrefixSumsHint(const std::vector<int64_t>& lengths, int64_t longest);

}  // namespace nsa

#endif  // NSA_ONNX_PLAN_LENGTHS_H_
