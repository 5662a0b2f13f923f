// NsaCompressAttention in the fuzzer (../fuzzer.h).
#include "attention.h"
#include "operators/nsa_compress_attention/c_api.h"

namespace nsa::cpu::fuzz {
namespace {

struct CompressAttentionCase {
  DType dtype;
  Values values;
  uint64_t seed;
  double scale;
  int64_t heads, kv_heads, dim, value_dim, tokens;  // of the arrays
  int64_t head_num, window, stride, block, count;
  std::vector<int64_t> query_ends, key_ends, block_ends;
  int64_t topk_rows, topk_columns, seen_rows, seen_columns;  // of the masks; rows -1: there is none
};

std::string Print(const CompressAttentionCase& c) {
  return Printer(c.dtype, c.values, c.seed)
      .Add("scale", c.scale)
      .Add("heads", c.heads)
      .Add("kv_heads", c.kv_heads)
      .Add("dim", c.dim)
      .Add("value_dim", c.value_dim)
      .Add("tokens", c.tokens)
      .Add("head_num", c.head_num)
      .Add("window", c.window)
      .Add("stride", c.stride)
      .Add("block", c.block)
      .Add("count", c.count)
      .Add("query_ends", c.query_ends)
      .Add("key_ends", c.key_ends)
      .Add("block_ends", c.block_ends)
      .Add("topk_rows", c.topk_rows)
      .Add("topk_columns", c.topk_columns)
      .Add("seen_rows", c.seen_rows)
      .Add("seen_columns", c.seen_columns)
      .text();
}

int64_t Step(const std::vector<int64_t>& ends, size_t b) {
  return ends[b] - (b > 0 ? ends[b - 1] : 0);
}

int64_t Longest(const std::vector<int64_t>& ends) {
  int64_t longest = 0;
  for (size_t b = 0; b < ends.size(); ++b) longest = std::max(longest, Step(ends, b));
  return longest;
}

CompressAttentionCase Make(Random* random) {
  CompressAttentionCase c{};
  c.dtype = OneOf<DType>({DType::kFloat16, DType::kBFloat16}, random);
  c.values = random->OneIn(2) ? Values::kModerate
                              : static_cast<Values>(random->Between(0, kValueKinds - 1));
  c.kv_heads = random->Between(1, 3);
  c.heads = c.head_num = c.kv_heads * (random->OneIn(6) ? 17 : random->Between(1, 4));
  c.dim = Multiple(random->OneIn(6) ? 512 : 128, random);
  c.value_dim = Multiple(c.dim, random);
  c.scale = Scale(c.dim, random);
  c.stride = 16 * OneOf<int64_t>({1, 1, 2, 4}, random);
  c.block = c.stride * random->Between(1, 128 / c.stride);
  c.window = c.stride + 16 * random->Between(0, (c.block - c.stride) / 16);
  c.count = random->Between(1, 6);
  const int64_t sequences = random->Between(1, 3);
  c.query_ends = PrefixSums(sequences, 7, random);
  c.key_ends = PrefixSums(sequences, random->OneIn(3) ? 150 : 30, random);
  c.tokens = c.query_ends.back();
  for (size_t b = 0; b < c.key_ends.size(); ++b) {
    const int64_t before = c.block_ends.empty() ? 0 : c.block_ends.back();
    c.block_ends.push_back(before + Ceil(Step(c.key_ends, b) * c.stride, c.block));
  }
  const auto rows = [&] {
    return random->OneIn(2) ? -1 : Longest(c.query_ends) + random->Between(0, 2);
  };
  c.topk_rows = rows();
  c.seen_rows = rows();
  c.topk_columns = Longest(c.block_ends) + random->Between(0, 2);
  c.seen_columns = Longest(c.key_ends) + random->Between(0, 2);
  return c;
}

void Spoil(CompressAttentionCase* c, Random* random) {
  switch (random->Between(0, 13)) {
    case 0:
      return SpoilNumber(&c->head_num, random);
    case 1:
      return SpoilNumber(&c->block, random);
    case 2:
      return SpoilNumber(&c->window, random);
    case 3:
      return SpoilNumber(&c->stride, random);
    case 4:
      c->scale = BadScale(random);
      return;
    case 5:
      return SpoilNumber(&c->dim, random);
    case 6:
      return SpoilNumber(&c->value_dim, random);
    case 7:
      return SpoilList(&c->query_ends, c->tokens, random);
    case 8:
      return SpoilList(&c->key_ends, c->key_ends.back(), random);
    case 9:
      return SpoilList(&c->block_ends, c->block_ends.back(), random);
    case 10:
      return c->block_ends.pop_back();
    case 11:
      c->topk_rows = random->Between(0, c->tokens);
      return;
    case 12:
      c->seen_columns = random->Between(0, c->seen_columns);
      return;
    default:
      c->count = OneOf<int64_t>({0, -1, 128, 129}, random);
  }
}

bool IsLegal(const CompressAttentionCase& c, int64_t key_tokens) {
  if (!IsFloat32(c.scale) || c.head_num != c.heads || c.count < 1 || c.count > 128) return false;
  if (!IsMultiple(c.dim, 512) || !IsMultiple(c.value_dim, c.dim)) return false;
  if (!IsMultiple(c.block, 128) || !IsMultiple(c.window, c.block)) return false;
  if (!IsMultiple(c.stride, c.window) || c.block % c.stride != 0) return false;
  if (c.key_ends.size() != c.query_ends.size()) return false;
  if (c.block_ends.size() != c.query_ends.size()) return false;
  if (!ArePrefixSums(c.query_ends, c.tokens) || !ArePrefixSums(c.key_ends, key_tokens)) {
    return false;
  }
  for (size_t b = 0; b < c.key_ends.size(); ++b) {
    if (Step(c.block_ends, b) != Ceil(Step(c.key_ends, b) * c.stride, c.block)) return false;
  }
  const int64_t rows = Longest(c.query_ends);
  return (c.topk_rows < 0 || (c.topk_rows >= rows && c.topk_columns >= Longest(c.block_ends))) &&
         (c.seen_rows < 0 || (c.seen_rows >= rows && c.seen_columns >= Longest(c.key_ends)));
}

struct Expected {
  std::vector<Bounded> output;               // attention_out
  std::vector<std::vector<Bounded>> scores;  // of each row of topk_indices
  std::vector<std::vector<bool>> forced;
};

struct Masks {
  const std::vector<uint8_t>& topk;
  const std::vector<uint8_t>& seen;
};

// Of a legal case.
Expected Oracle(const CompressAttentionCase& c, const std::vector<float>& query,
                const std::vector<float>& key, const std::vector<float>& value,
                const Masks& masks) {
  Expected want;
  const int64_t group = c.heads / c.kv_heads;
  const float scale = static_cast<float>(c.scale);
  for (size_t b = 0; b < c.query_ends.size(); ++b) {
    const int64_t begin = c.query_ends[b] - Step(c.query_ends, b);
    const int64_t length = Step(c.key_ends, b), first = c.key_ends[b] - length;
    for (int64_t t = begin; t < c.query_ends[b]; ++t) {
      for (int64_t g = 0; g < c.kv_heads; ++g) {
        std::vector<Token> tokens;
        for (int64_t j = 0; j < length; ++j) {
          const int64_t row = (first + j) * c.kv_heads + g;
          const auto at = static_cast<size_t>((t - begin) * c.seen_columns + j);
          tokens.push_back({key.data() + row * c.dim, value.data() + row * c.value_dim,
                            c.seen_rows >= 0 && masks.seen[at] != 0});
        }
        std::vector<std::vector<Bounded>> heads;
        for (int64_t h = g * group; h < (g + 1) * group; ++h) {
          const float* row = query.data() + (t * c.heads + h) * c.dim;
          heads.push_back(Probabilities(row, tokens, c.dim, scale));
          for (int64_t d = 0; d < c.value_dim; ++d) {
            want.output.push_back(Output(heads.back(), tokens, d));
          }
        }
        const int64_t blocks = Step(c.block_ends, b);
        want.scores.push_back(Scores(heads, blocks, c.block / c.stride, c.window / c.stride));
        std::vector<bool> forced;
        for (int64_t s = 0; s < blocks; ++s) {
          const auto at = static_cast<size_t>((t - begin) * c.topk_columns + s);
          forced.push_back(c.topk_rows >= 0 && masks.topk[at] != 0);
        }
        want.forced.push_back(forced);
      }
    }
  }
  return want;
}

std::vector<uint8_t> MaskOf(int64_t rows, int64_t columns, Random* random) {
  std::vector<uint8_t> mask(static_cast<size_t>(std::max<int64_t>(rows, 0) * columns));
  const int64_t rare = OneOf<int64_t>({1, 2, 6}, random);
  for (uint8_t& one : mask) one = static_cast<uint8_t>(random->OneIn(rare) ? random->Next() : 0);
  return mask;
}

void Run(const CompressAttentionCase& c, Runner* runner) {
  const int64_t key_tokens = c.key_ends.empty() ? 0 : Clamped(c.key_ends.back());
  const Dims query_dims{c.tokens, c.heads, c.dim}, key_dims{key_tokens, c.kv_heads, c.dim},
      value_dims{key_tokens, c.kv_heads, c.value_dim}, output_dims{c.tokens, c.heads, c.value_dim},
      topk_dims{c.tokens, c.kv_heads, Clamped(c.count)};
  for (const Dims& dims : {query_dims, key_dims, value_dims, output_dims, topk_dims}) {
    if (!Possible(dims)) return;
  }
  Random random(c.seed);
  const Data queries(c.dtype, c.values, query_dims, &random);
  const Data keys(c.dtype, c.values, key_dims, &random);
  const Data values(c.dtype, c.values, value_dims, &random);
  const std::vector<uint8_t> forced = MaskOf(c.topk_rows, c.topk_columns, &random);
  const std::vector<uint8_t> unseen = MaskOf(c.seen_rows, c.seen_columns, &random);
  const bool legal = IsLegal(c, key_tokens);
  Expected want;
  if (legal) want = Oracle(c, queries.values, keys.values, values.values, {forced, unseen});

  Memory query("query", query_dims, queries.bits, random.Between(0, 15));
  Memory key("key", key_dims, keys.bits, random.Between(0, 15));
  Memory value("value", value_dims, values.bits, random.Between(0, 15));
  Memory topk_mask("topk_mask", {c.topk_rows, c.topk_columns}, forced, random.Between(0, 3));
  Memory seen_mask("atten_mask", {c.seen_rows, c.seen_columns}, unseen, random.Between(0, 3));
  Memory query_ends("actual_seq_qlen", {}, c.query_ends, random.Between(0, 1));
  Memory key_ends("actual_cmp_seq_kvlen", {}, c.key_ends, random.Between(0, 1));
  Memory block_ends("actual_sel_seq_kvlen", {}, c.block_ends, random.Between(0, 1));
  Memory output("attention_out", output_dims, RandomBits(Elements(output_dims), &random),
                random.Between(0, 31));
  Memory topk("topk_indices", topk_dims,
              std::vector<int32_t>(static_cast<size_t>(Elements(topk_dims)), -77),
              random.Between(0, 15));
  const NsaArray q = query.array(), k = key.array(), v = value.array(), tm = topk_mask.array(),
                 sm = seen_mask.array(), y = output.array(), i = topk.array();
  const auto call = [&](int64_t threads, char* error, int64_t size) {
    return nsa_compress_attention(
        static_cast<int>(c.dtype), &q, &k, &v, c.scale, c.head_num, c.window, c.stride, c.block,
        c.count, c.topk_rows < 0 ? nullptr : &tm, c.seen_rows < 0 ? nullptr : &sm,
        query_ends.as<int64_t>(), static_cast<int64_t>(c.query_ends.size()), key_ends.as<int64_t>(),
        static_cast<int64_t>(c.key_ends.size()), block_ends.as<int64_t>(),
        static_cast<int64_t>(c.block_ends.size()), &y, &i, threads, error, size);
  };
  const auto judge = [&] {
    std::string wrong = Difference(c.dtype, "attention_out", output.as<uint16_t>(), want.output);
    for (size_t row = 0; row < want.scores.size() && wrong.empty(); ++row) {
      const int32_t* got = topk.as<int32_t>() + row * static_cast<size_t>(c.count);
      wrong = WrongRanks(got, c.count, want.scores[row], want.forced[row]);
      if (!wrong.empty()) wrong = "topk_indices, row " + std::to_string(row) + ": " + wrong;
    }
    return wrong;
  };
  runner->Run({{&query, &key, &value, &topk_mask, &seen_mask, &query_ends, &key_ends, &block_ends},
               {&query_ends, &key_ends, &block_ends},
               {&output, &topk},
               legal,
               /*same_bits=*/false,
               call,
               judge});
}

const Register<CompressAttentionCase> part("nsa_compress_attention", Make, Spoil, Print, Run, {});

}  // namespace
}  // namespace nsa::cpu::fuzz
