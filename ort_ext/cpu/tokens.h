// Where the keys and values of an attention stage lie, and how they are fetched before their turn.
#ifndef NSA_ONNX_ORT_EXT_CPU_TOKENS_H_
#define NSA_ONNX_ORT_EXT_CPU_TOKENS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace nsa::cpu {

// The keys or the values of one sequence and one head: token j is `dim` neighbouring elements.
struct Tokens {
  const uint16_t* data;  // the head's first element of token 0, or of page 0
  size_t pitch;          // elements from a token to the next
  const int64_t* pages;  // where each page of the sequence lies; null: one token after the other
  size_t page;           // tokens of a page

  const uint16_t* At(size_t j) const {
    if (pages == nullptr) return data + j * pitch;
    return data + (static_cast<size_t>(pages[j / page]) * page + j % page) * pitch;
  }
  // How many of the `count` tokens from j on lie one after the other.
  size_t Together(size_t j, size_t count) const {
    return pages == nullptr ? count : std::min(count, page - j % page);
  }
};

// Fetches tokens into the second-level cache (what is at work fills the first), a few lines at a
// time: a processor has some twenty fetches under way at most, and what is loaded meanwhile waits
// behind them.
class Fetcher {
 public:
  // Tokens first .. end - 1 of `dim` elements, in about `calls` calls of Fetch.
  Fetcher(const Tokens& tokens, size_t first, size_t end, size_t dim, size_t calls)
      : tokens_(tokens), token_(first), end_(std::max(first, end)), dim_(dim) {
    const size_t lines = (end_ - first) * ((dim + kLine - 1) / kLine);
    each_ = (lines + calls - 1) / calls;
    if (token_ < end_) from_ = tokens_.At(token_);
  }

  void Fetch() {
    for (size_t i = 0; i < each_ && token_ < end_; ++i) {
      __builtin_prefetch(from_ + at_, 0, 2);
      at_ += kLine;
      if (at_ < dim_) continue;
      at_ = 0;
      if (++token_ < end_) from_ = tokens_.At(token_);
    }
  }

 private:
  static constexpr size_t kLine = 64 / sizeof(uint16_t);

  const Tokens& tokens_;
  size_t token_, end_, dim_, each_, at_ = 0;
  const uint16_t* from_ = nullptr;
};

}  // namespace nsa::cpu

#endif  // NSA_ONNX_ORT_EXT_CPU_TOKENS_H_
