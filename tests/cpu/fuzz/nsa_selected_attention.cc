// NsaSelectedAttention in the fuzzer (../fuzzer.h).
#include "attention.h"
#include "operators/nsa_selected_attention/c_api.h"

namespace nsa::cpu::fuzz {
namespace {

struct SelectedCase {
  DType dtype;
  Values values;
  uint64_t seed;
  double scale;
  int64_t heads, kv_heads, dim, value_dim, tokens;  // of the arrays
  int64_t head_num, block, columns, count, causal;  // columns: of topk_indices
  std::vector<int64_t> query_ends, key_ends;
  std::vector<int32_t> topk;  // [tokens, kv_heads, columns]
};

std::string Print(const SelectedCase& c) {
  return Printer(c.dtype, c.values, c.seed)
      .Add("scale", c.scale)
      .Add("heads", c.heads)
      .Add("kv_heads", c.kv_heads)
      .Add("dim", c.dim)
      .Add("value_dim", c.value_dim)
      .Add("tokens", c.tokens)
      .Add("head_num", c.head_num)
      .Add("block", c.block)
      .Add("columns", c.columns)
      .Add("count", c.count)
      .Add("causal", c.causal)
      .Add("query_ends", c.query_ends)
      .Add("key_ends", c.key_ends)
      .Add("topk", c.topk)
      .text();
}

SelectedCase Make(Random* random) {
  SelectedCase c{};
  c.dtype = OneOf<DType>({DType::kFloat16, DType::kBFloat16}, random);
  c.values = random->OneIn(2) ? Values::kModerate
                              : static_cast<Values>(random->Between(0, kValueKinds - 1));
  c.kv_heads = random->Between(1, 3);
  c.heads = c.head_num = c.kv_heads * (random->OneIn(6) ? 17 : random->Between(1, 4));
  c.dim = Multiple(random->OneIn(6) ? 512 : 128, random);
  c.value_dim = Multiple(c.dim, random);
  c.scale = Scale(c.dim, random);
  c.block = Multiple(128, random);
  c.columns = c.count = random->Between(1, 5);
  c.causal = random->Between(0, 1);
  const int64_t sequences = random->Between(1, 3);
  c.query_ends = PrefixSums(sequences, 7, random);
  c.key_ends = PrefixSums(sequences, 4 * c.block, random);
  c.tokens = c.query_ends.back();
  for (size_t b = 0; b < c.query_ends.size(); ++b) {
    const int64_t rows = c.query_ends[b] - (b > 0 ? c.query_ends[b - 1] : 0);
    const int64_t length = c.key_ends[b] - (b > 0 ? c.key_ends[b - 1] : 0);
    for (int64_t i = rows * c.kv_heads * c.columns; i > 0; --i) {
      c.topk.push_back(static_cast<int32_t>(random->Between(-1, Ceil(length, c.block) - 1)));
    }
  }
  return c;
}

void Spoil(SelectedCase* c, Random* random) {
  switch (random->Between(0, 11)) {
    case 0:
      return SpoilNumber(&c->head_num, random);
    case 1:
      return SpoilNumber(&c->block, random);
    case 2:
      return SpoilNumber(&c->count, random);
    case 3:
      return SpoilNumber(&c->causal, random);
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
      return c->key_ends.pop_back();
    default:
      return SpoilList(&c->topk, 4, random);
  }
}

bool IsLegal(const SelectedCase& c, int64_t key_tokens) {
  if (!IsFloat32(c.scale) || c.head_num != c.heads || c.count != c.columns) return false;
  if (!IsMultiple(c.dim, 512) || !IsMultiple(c.value_dim, c.dim)) return false;
  if (!IsMultiple(c.block, 128) || c.causal < 0 || c.causal > 1) return false;
  if (c.key_ends.size() != c.query_ends.size()) return false;
  if (!ArePrefixSums(c.query_ends, c.tokens) || !ArePrefixSums(c.key_ends, key_tokens)) {
    return false;
  }
  size_t i = 0;
  for (size_t b = 0; b < c.query_ends.size(); ++b) {
    const int64_t length = c.key_ends[b] - (b > 0 ? c.key_ends[b - 1] : 0);
    for (; i < static_cast<size_t>(c.query_ends[b] * c.kv_heads * c.columns); ++i) {
      if (c.topk[i] < -1 || c.topk[i] >= Ceil(length, c.block)) return false;
    }
  }
  return true;
}

// attention_out of a legal case.
std::vector<Bounded> Oracle(const SelectedCase& c, const std::vector<float>& query,
                            const std::vector<float>& key, const std::vector<float>& value) {
  std::vector<Bounded> output;
  for (size_t b = 0; b < c.query_ends.size(); ++b) {
    const int64_t begin = b > 0 ? c.query_ends[b - 1] : 0, first = b > 0 ? c.key_ends[b - 1] : 0;
    for (int64_t t = begin; t < c.query_ends[b]; ++t) {
      for (int64_t h = 0; h < c.heads; ++h) {
        const int64_t g = h / (c.heads / c.kv_heads);
        std::vector<Token> tokens;
        for (int64_t i = 0; i < c.columns; ++i) {
          const int64_t block = c.topk[static_cast<size_t>((t * c.kv_heads + g) * c.columns + i)];
          if (block < 0) continue;
          const int64_t end = std::min((block + 1) * c.block, c.key_ends[b] - first);
          for (int64_t p = block * c.block; p < end; ++p) {
            const int64_t row = (first + p) * c.kv_heads + g;
            tokens.push_back({key.data() + row * c.dim, value.data() + row * c.value_dim,
                              c.causal == 1 && p > t - begin});
          }
        }
        const float scale = static_cast<float>(c.scale);
        const auto p =
            Probabilities(query.data() + (t * c.heads + h) * c.dim, tokens, c.dim, scale);
        for (int64_t d = 0; d < c.value_dim; ++d) output.push_back(Output(p, tokens, d));
      }
    }
  }
  return output;
}

void Run(const SelectedCase& c, Runner* runner) {
  // The arrays' own number of tokens: that of the case before it was spoilt, or any.
  const int64_t key_tokens = c.key_ends.empty() ? 0 : Clamped(c.key_ends.back());
  const Dims query_dims{c.tokens, c.heads, c.dim}, key_dims{key_tokens, c.kv_heads, c.dim},
      value_dims{key_tokens, c.kv_heads, c.value_dim}, output_dims{c.tokens, c.heads, c.value_dim};
  if (!Possible(query_dims) || !Possible(value_dims) || !Possible(key_dims)) return;
  if (!Possible(output_dims)) return;
  Random random(c.seed);
  const Data queries(c.dtype, c.values, query_dims, &random);
  const Data keys(c.dtype, c.values, key_dims, &random);
  const Data values(c.dtype, c.values, value_dims, &random);
  const bool legal = IsLegal(c, key_tokens);
  std::vector<Bounded> want;
  if (legal) want = Oracle(c, queries.values, keys.values, values.values);

  Memory query("query", query_dims, queries.bits, random.Between(0, 15));
  Memory key("key", key_dims, keys.bits, random.Between(0, 15));
  Memory value("value", value_dims, values.bits, random.Between(0, 15));
  Memory topk("topk_indices", {c.tokens, c.kv_heads, c.columns}, c.topk, random.Between(0, 1));
  Memory query_ends("actual_seq_qlen", {}, c.query_ends, random.Between(0, 1));
  Memory key_ends("actual_seq_kvlen", {}, c.key_ends, random.Between(0, 1));
  Memory output("attention_out", output_dims, RandomBits(Elements(output_dims), &random),
                random.Between(0, 31));
  const NsaArray q = query.array(), k = key.array(), v = value.array(), i = topk.array(),
                 y = output.array();
  runner->Run({{&query, &key, &value, &topk, &query_ends, &key_ends},
               {&topk, &query_ends, &key_ends},
               {&output},
               legal,
               /*same_bits=*/false,
               [&](int64_t threads, char* error, int64_t size) {
                 return nsa_selected_attention(
                     static_cast<int>(c.dtype), &q, &k, &v, &i, c.scale, c.head_num, c.block,
                     c.count, c.causal, query_ends.as<int64_t>(),
                     static_cast<int64_t>(c.query_ends.size()), key_ends.as<int64_t>(),
                     static_cast<int64_t>(c.key_ends.size()), &y, threads, error, size);
               },
               [&] { return Difference(c.dtype, "attention_out", output.as<uint16_t>(), want); }});
}

const Register<SelectedCase> part("nsa_selected_attention", Make, Spoil, Print, Run, {});

}  // namespace
}  // namespace nsa::cpu::fuzz
