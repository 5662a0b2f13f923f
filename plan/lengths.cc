// See lengths.h.
#include "plan/lengths.h"

#include "nsa_spec.h"
#include "plan/caller.h"

namespace nsa {

std::vector<int64_t> CopyLengths(const int64_t* values, int64_t count) {
  std::vector<int64_t> copy(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) copy[static_cast<size_t>(i)] = ReadOnce(values, i);
  return copy;
}

std::string_view LengthsHint(const std::vector<int64_t>& ends, std::optional<int64_t> total) {
  int64_t sum = 0;
  for (const int64_t end : ends) {
    if (__builtin_add_overflow(sum, end, &sum)) return {};
  }
  return sum == total ? spec::hint::kLengths : std::string_view();
}

std::string_view PrefixSumsHint(const std::vector<int64_t>& lengths, int64_t longest) {
  int64_t before = 0;
  for (const int64_t end : lengths) {
    if (end < before || end - before > longest) return {};
    before = end;
  }
  return spec::hint::kPrefixSums;
}

}  // namespace nsa
