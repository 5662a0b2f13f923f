// What the cases of the attention stages share: heads and their sizes, sequences of tokens in a row
// or in pages, the choice of blocks, and the arrays of a call. Each of these parts is made, spoilt,
// printed and judged by itself.
#ifndef NSA_ONNX_TESTS_CPU_FUZZ_ATTENTION_CASE_H_
#define NSA_ONNX_TESTS_CPU_FUZZ_ATTENTION_CASE_H_

#include <algorithm>
#include <string>
#include <vector>

#include "attention.h"
#include "fuzzer.h"

namespace nsa::cpu::fuzz {

inline DType AnyType(Random* random) {
  return OneOf<DType>({DType::kFloat16, DType::kBFloat16}, random);
}

inline Values AnyValues(Random* random) {
  if (random->OneIn(2)) return Values::kModerate;
  return static_cast<Values>(random->Between(0, kValueKinds - 1));
}

// --------------------------------------------------------------------------------------------------
// Heads

struct Heads {
  double scale;
  int64_t heads, kv_heads, dim, value_dim;  // of the arrays
  int64_t head_num;

  int64_t group() const { return heads / kv_heads; }
};

inline Heads MakeHeads(Random* random) {
  Heads of{};
  of.kv_heads = random->Between(1, 3);
  of.heads = of.head_num = of.kv_heads * (random->OneIn(6) ? 17 : random->Between(1, 4));
  of.dim = Multiple(random->OneIn(6) ? 512 : 128, random);
  of.value_dim = Multiple(of.dim, random);
  if (random->OneIn(4)) {  // the only ones of some of Ascend's operators
    of.dim = 192;
    of.value_dim = 128;
  }
  of.scale = Scale(of.dim, random);
  return of;
}

inline Printer Print(const Heads& of) {
  return Printer()
      .Add("scale", of.scale)
      .Add("heads", of.heads)
      .Add("kv_heads", of.kv_heads)
      .Add("dim", of.dim)
      .Add("value_dim", of.value_dim)
      .Add("head_num", of.head_num);
}

inline void Spoil(Heads* of, Random* random) {
  if (random->OneIn(4)) {
    of->scale = BadScale(random);
    return;
  }
  SpoilNumber(OneOf<int64_t*>({&of->head_num, &of->dim, &of->value_dim}, random), random);
}

inline bool IsLegal(const Heads& of) {
  return IsFloat32(of.scale) && of.head_num == of.heads && IsMultiple(of.dim, 512) &&
         IsMultiple(of.value_dim, of.dim);
}

// P of each query head of group `g`, whose token is `query`, and what they add to attention_out.
inline std::vector<std::vector<Bounded>> Attend(const Heads& of, const float* query, int64_t g,
                                                const std::vector<Token>& tokens,
                                                std::vector<Bounded>* output) {
  std::vector<std::vector<Bounded>> heads;
  for (int64_t h = g * of.group(); h < (g + 1) * of.group(); ++h) {
    const float scale = static_cast<float>(of.scale);
    heads.push_back(Probabilities(query + h * of.dim, tokens, of.dim, scale));
    for (int64_t d = 0; d < of.value_dim; ++d) {
      output->push_back(Output(heads.back(), tokens, d));
    }
  }
  return heads;
}

// --------------------------------------------------------------------------------------------------
// Sequences of a prefill

struct Sequences {
  int64_t tokens;                             // of query
  std::vector<int64_t> query_ends, key_ends;  // prefix sums

  size_t count() const { return query_ends.size(); }
  int64_t key_tokens() const { return key_ends.empty() ? 0 : Clamped(key_ends.back()); }
};

// Where sequence `b` begins, and what it adds to the prefix sums; if these are hostile and 64 bits
// do not hold it, a length that no sequence has.
inline int64_t Begin(const std::vector<int64_t>& ends, size_t b) { return b > 0 ? ends[b - 1] : 0; }
inline int64_t Step(const std::vector<int64_t>& ends, size_t b) {
  int64_t step = 0;
  return __builtin_sub_overflow(ends[b], Begin(ends, b), &step) ? INT64_MIN : step;
}

inline int64_t Longest(const std::vector<int64_t>& ends) {
  int64_t longest = 0;
  for (size_t b = 0; b < ends.size(); ++b) longest = std::max(longest, Step(ends, b));
  return longest;
}

// Key lengths up to `longest`. Where `unit` is above 1 they are multiples of it, and no sequence is
// empty: Ascend's operators take no others.
inline Sequences MakeSequences(int64_t longest, int64_t unit, Random* random) {
  Sequences of{};
  const int64_t count = random->Between(1, 3);
  of.query_ends = PrefixSums(count, 7, random);
  of.key_ends = PrefixSums(count, longest / unit, random);
  if (unit > 1) {
    for (int64_t b = 0; b < count; ++b) {
      int64_t& end = of.key_ends[static_cast<size_t>(b)];
      end = (end + b + 1) * unit;
      of.query_ends[static_cast<size_t>(b)] += b + 1;
    }
  }
  of.tokens = of.query_ends.back();
  return of;
}

inline Printer Print(const Sequences& of) {
  return Printer()
      .Add("tokens", of.tokens)
      .Add("query_ends", of.query_ends)
      .Add("key_ends", of.key_ends);
}

inline void Spoil(Sequences* of, Random* random) {
  if (random->OneIn(4)) return of->key_ends.pop_back();
  if (random->OneIn(2)) return SpoilList(&of->query_ends, of->tokens, random);
  SpoilList(&of->key_ends, of->key_ends.back(), random);
}

inline bool IsLegal(const Sequences& of) {
  return of.key_ends.size() == of.count() && ArePrefixSums(of.query_ends, of.tokens) &&
         ArePrefixSums(of.key_ends, of.key_tokens());
}

// --------------------------------------------------------------------------------------------------
// Paged sequences of a decode step

struct Pages {
  int64_t pages, max_pages, page_tokens;  // of the arrays
  int64_t page, key_value_head_num;
  std::vector<int64_t> lengths;
  std::vector<int32_t> table;  // [batch, max_pages]

  // Where token `t` of sequence `b` lies, in tokens from the first page on.
  int64_t Place(int64_t b, int64_t t) const {
    return table[static_cast<size_t>(b * max_pages + t / page)] * page + t % page;
  }
};

// All but the table, of whose rows FillTable must make one for each sequence.
inline Pages MakePages(int64_t batch, int64_t kv_heads, Random* random) {
  Pages of{};
  of.key_value_head_num = kv_heads;
  of.page = of.page_tokens =
      random->OneIn(3) ? 128 : Multiple(random->OneIn(8) ? 1024 : 128, random);
  of.max_pages = random->Between(0, of.page > 128 ? 1 : 4);
  of.pages = random->Between(1, 4);
  const int64_t longest = of.max_pages * of.page;
  for (; batch > 0; --batch) {
    const bool bound = random->OneIn(5);
    of.lengths.push_back(bound ? OneOf<int64_t>({0, longest}, random)
                               : random->Between(0, longest));
  }
  return of;
}

// A row of the table: which of its pages are read. What is not read may be anything.
inline void FillTable(const std::vector<bool>& read, Pages* of, Random* random) {
  for (const bool one : read) {
    const int64_t last = of->pages - 1;
    of->table.push_back(
        static_cast<int32_t>(one ? OneOf<int64_t>({random->Between(0, last), last}, random)
                                 : Hostile(of->pages, random)));
  }
}

inline Printer Print(const Pages& of) {
  return Printer()
      .Add("pages", of.pages)
      .Add("max_pages", of.max_pages)
      .Add("page_tokens", of.page_tokens)
      .Add("page", of.page)
      .Add("key_value_head_num", of.key_value_head_num)
      .Add("lengths", of.lengths)
      .Add("table", of.table);
}

inline void Spoil(Pages* of, Random* random) {
  switch (random->Between(0, 11)) {
    case 0:
      return SpoilNumber(&of->page, random);
    case 1:
      return SpoilNumber(&of->key_value_head_num, random);
    case 2:
      of->pages = random->Between(0, 3);
      return;
    case 3:
      if (!of->lengths.empty()) of->lengths.pop_back();
      return;
    case 4:
    case 5:
    case 6:
      return SpoilList(&of->lengths, of->max_pages * of->page, random);
    default:
      return SpoilList(&of->table, of->pages, random);
  }
}

// All but the table.
inline bool HasLegalLengths(const Pages& of, int64_t batch, int64_t kv_heads) {
  const auto fits = [&](int64_t length) { return length >= 0 && length <= of.max_pages * of.page; };
  return of.key_value_head_num == kv_heads && of.page == of.page_tokens &&
         IsMultiple(of.page, 1024) && static_cast<int64_t>(of.lengths.size()) == batch &&
         std::all_of(of.lengths.begin(), of.lengths.end(), fits);
}

// Whether the pages of sequence `b` that are read are there.
inline bool HasLegalTable(const Pages& of, int64_t b, const std::vector<bool>& read) {
  for (size_t p = 0; p < read.size(); ++p) {
    const int32_t page = of.table[static_cast<size_t>(b * of.max_pages) + p];
    if (read[p] && (page < 0 || page >= of.pages)) return false;
  }
  return true;
}

// --------------------------------------------------------------------------------------------------
// Blocks that are to be chosen, and chosen ones

// Of the stages that choose.
struct Choice {
  int64_t window, stride, block, count;
};

inline Choice MakeChoice(Random* random) {
  Choice of{};
  of.stride = 16 * OneOf<int64_t>({1, 1, 2, 4}, random);
  of.block = of.stride * random->Between(1, 128 / of.stride);
  of.window = of.stride + 16 * random->Between(0, (of.block - of.stride) / 16);
  of.count = random->OneIn(3) ? 1 : random->Between(1, 6);
  return of;
}

inline Printer Print(const Choice& of) {
  return Printer()
      .Add("window", of.window)
      .Add("stride", of.stride)
      .Add("block", of.block)
      .Add("count", of.count);
}

inline void Spoil(Choice* of, Random* random) {
  if (random->OneIn(4)) {
    of->count = OneOf<int64_t>({0, -1, 128, 129}, random);
    return;
  }
  SpoilNumber(OneOf<int64_t*>({&of->window, &of->stride, &of->block}, random), random);
}

inline bool IsLegal(const Choice& of) {
  return of.count >= 1 && of.count <= 128 && IsMultiple(of.block, 128) &&
         IsMultiple(of.window, of.block) && IsMultiple(of.stride, of.window) &&
         of.block % of.stride == 0;
}

// What a stage that chooses must give.
struct Chosen {
  std::vector<Bounded> output;               // attention_out
  std::vector<std::vector<Bounded>> scores;  // of each row of topk_indices
  std::vector<std::vector<bool>> forced;

  void Add(const Choice& of, const std::vector<std::vector<Bounded>>& heads,
           const std::vector<bool>& forced_blocks) {
    const auto blocks = static_cast<int64_t>(forced_blocks.size());
    scores.push_back(Scores(heads, blocks, of.block / of.stride, of.window / of.stride));
    forced.push_back(forced_blocks);
  }
  std::string Wrong(DType dtype, Memory* attention_out, Memory* topk, int64_t count) const {
    std::string wrong = Difference(dtype, "attention_out", attention_out->as<uint16_t>(), output);
    for (size_t row = 0; row < scores.size() && wrong.empty(); ++row) {
      const int32_t* got = topk->as<int32_t>() + row * static_cast<size_t>(count);
      wrong = WrongRanks(got, count, scores[row], forced[row]);
      if (!wrong.empty()) wrong = "topk_indices, row " + std::to_string(row) + ": " + wrong;
    }
    return wrong;
  }
};

// Of the stages that are told.
struct Blocks {
  int64_t block, columns, count;  // columns: of topk_indices
  std::vector<int32_t> topk;      // [rows, kv_heads, columns]
};

inline Printer Print(const Blocks& of) {
  return Printer()
      .Add("block", of.block)
      .Add("columns", of.columns)
      .Add("count", of.count)
      .Add("topk", of.topk);
}

// `rows` rows of sequences of `length` tokens. Where `all` is set, blocks are whole and differ, as
// Ascend's operators want them.
inline void AddRows(int64_t rows, int64_t kv_heads, int64_t length, bool all, Blocks* of,
                    Random* random) {
  const int64_t last = Ceil(length, of->block) - 1;
  for (int64_t row = 0; row < rows * kv_heads; ++row) {
    for (int64_t i = 0; i < of->columns; ++i) {
      const int64_t block = all && i <= last ? last - i : random->Between(-1, last);
      of->topk.push_back(static_cast<int32_t>(all && i > last ? -1 : block));
    }
  }
}

// `blocks_of(i)`: how many there are for element i.
template <class BlocksOf>
void Spoil(Blocks* of, BlocksOf blocks_of, Random* random) {
  if (random->OneIn(6)) return SpoilNumber(&of->block, random);
  if (random->OneIn(6)) return SpoilNumber(&of->count, random);
  SpoilEach(&of->topk, blocks_of, random);
}

// All but the chosen ones.
inline bool IsLegal(const Blocks& of) {
  return of.count == of.columns && IsMultiple(of.block, 128);
}

// The tokens of the blocks that the row of group g has chosen: add(position in the sequence).
template <class Add>
void ForChosen(const Blocks& of, int64_t row, int64_t length, Add add) {
  for (int64_t i = 0; i < of.columns; ++i) {
    const int64_t block = of.topk[static_cast<size_t>(row * of.columns + i)];
    const int64_t end = std::min((block + 1) * of.block, length);
    for (int64_t p = block * of.block; block >= 0 && p < end; ++p) add(p);
  }
}

// --------------------------------------------------------------------------------------------------
// The arrays that all stages have

// Of a legal or spoilt case. Dims: key's but for its last one.
struct Arrays {
  Arrays(DType dtype, Values kind, const Heads& of, int64_t rows, const Dims& key_dims,
         Random* random)
      : dims{{rows, of.heads, of.dim},
             With(key_dims, of.dim),
             With(key_dims, of.value_dim),
             {rows, of.heads, of.value_dim}},
        queries(dtype, kind, dims[0], random),
        keys(dtype, kind, dims[1], random),
        values(dtype, kind, dims[2], random),
        query("query", dims[0], queries.bits, random->Between(0, 15)),
        key("key", dims[1], keys.bits, random->Between(0, 15)),
        value("value", dims[2], values.bits, random->Between(0, 15)),
        output("attention_out", dims[3], RandomBits(Elements(dims[3]), random),
               random->Between(0, 31)) {}

  static bool ArePossible(const Heads& of, int64_t rows, const Dims& key_dims) {
    return Possible({rows, of.heads, of.dim}) && Possible(With(key_dims, of.dim)) &&
           Possible(With(key_dims, of.value_dim)) && Possible({rows, of.heads, of.value_dim});
  }
  // The token at `place`, counted from the first one, for group `g`.
  Token At(const Heads& of, int64_t place, int64_t g, bool masked) const {
    const int64_t row = place * of.kv_heads + g;
    return {keys.values.data() + row * of.dim, values.values.data() + row * of.value_dim, masked};
  }

  std::vector<Dims> dims;
  Data queries, keys, values;
  Memory query, key, value, output;

 private:
  static Dims With(Dims dims, int64_t last) {
    dims.push_back(last);
    return dims;
  }
};

inline Memory MakeTopk(Dims dims, Random* random) {
  const auto size = static_cast<size_t>(Elements(dims));
  return {"topk_indices", std::move(dims), std::vector<int32_t>(size, -77), random->Between(0, 15)};
}

}  // namespace nsa::cpu::fuzz

#endif  // NSA_ONNX_TESTS_CPU_FUZZ_ATTENTION_CASE_H_
