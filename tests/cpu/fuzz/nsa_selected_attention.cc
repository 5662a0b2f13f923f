// NsaSelectedAttention in the fuzzer (../fuzzer.h). The oracle is written from docs/operators.md.
#include "fuzz/attended.h"
#include "operators/nsa_selected_attention/c_api.h"

namespace nsa::cpu::fuzz {
namespace {

struct SelectedCase {
  DType dtype;
  Values values;
  uint64_t seed;
  int64_t rows, tokens, heads, kv_heads, dim, value_dim, block, count, causal;
  std::vector<int64_t> ends, key_ends;
  std::vector<int32_t> topk;  // [rows, kv_heads, count]
  int64_t more_rows;          // that the output has than it must: 0 if legal
};

std::string Print(const SelectedCase& c) {
  return Printer(c.dtype, c.values, c.seed)
      .Add("rows", c.rows)
      .Add("tokens", c.tokens)
      .Add("heads", c.heads)
      .Add("kv_heads", c.kv_heads)
      .Add("dim", c.dim)
      .Add("value_dim", c.value_dim)
      .Add("block", c.block)
      .Add("count", c.count)
      .Add("causal", c.causal)
      .Add("ends", c.ends)
      .Add("key_ends", c.key_ends)
      .Add("topk", c.topk)
      .Add("more_rows", c.more_rows)
      .text();
}

SelectedCase Make(Random* random) {
  SelectedCase c{};
  c.dtype = OneOf<DType>({DType::kFloat16, DType::kBFloat16}, random);
  c.values = static_cast<Values>(random->Between(0, kValueKinds - 1));
  c.kv_heads = random->Between(1, 3);
  c.heads = c.kv_heads * (random->OneIn(8) ? random->Between(1, 128) : random->Between(1, 6));
  c.dim = 16 * (random->OneIn(6) ? random->Between(1, 32) : random->Between(1, 4));
  c.value_dim = 16 * random->Between(1, c.dim / 16);
  c.block = 16 * (random->OneIn(2) ? random->Between(1, 8) : random->Between(1, 2));
  c.count = random->OneIn(20) ? 128 : random->Between(1, 5);
  c.causal = random->Between(0, 1);
  // Little work: the oracle is slow.
  const int64_t most_rows = 1 + 100'000 / (c.heads * c.dim * c.block * c.count);
  for (int64_t i = random->Between(1, 4); i > 0; --i) {
    const int64_t rows = random->OneIn(4) ? 0 : random->Between(1, std::min<int64_t>(most_rows, 6));
    const int64_t tokens = random->OneIn(5) ? 0 : random->Between(1, 100);
    const int64_t blocks = (tokens + c.block - 1) / c.block;
    for (int64_t j = 0; j < rows * c.kv_heads * c.count; ++j) {
      c.topk.push_back(static_cast<int32_t>(random->Between(-1, blocks - 1)));
    }
    c.rows += rows;
    c.tokens += tokens;
    c.ends.push_back(c.rows);
    c.key_ends.push_back(c.tokens);
  }
  return c;
}

void Spoil(SelectedCase* c, Random* random) {
  switch (random->Between(0, 14)) {
    case 0:
      return SpoilNumber(&c->rows, random);
    case 1:
      return SpoilNumber(&c->tokens, random);
    case 2:
      return SpoilNumber(&c->heads, random);
    case 3:
      return SpoilNumber(&c->kv_heads, random);
    case 4:
      return SpoilNumber(&c->dim, random);
    case 5:
      return SpoilNumber(&c->value_dim, random);
    case 6:
      return SpoilNumber(&c->block, random);
    case 7:
      return SpoilNumber(&c->count, random);
    case 8:
      return SpoilNumber(&c->causal, random);
    case 9:
      c->more_rows = OneOf<int64_t>({-1, 1, 2}, random);
      return;
    case 10:
      return OneOf<std::vector<int64_t>*>({&c->ends, &c->key_ends}, random)->pop_back();
    case 11:
      return SpoilList(&c->ends, c->rows, random);
    case 12:
      return SpoilList(&c->key_ends, c->tokens, random);
    default:
      return SpoilList(&c->topk, (c->tokens + c->block - 1) / c->block, random);
  }
}

bool ArePrefixSums(const std::vector<int64_t>& ends, int64_t total) {
  return !ends.empty() && ends[0] >= 0 && std::is_sorted(ends.begin(), ends.end()) &&
         ends.back() == total;
}

// But for the rows of the output.
bool IsLegal(const SelectedCase& c) {
  if (c.heads < 1 || c.kv_heads < 1 || c.heads % c.kv_heads || c.heads / c.kv_heads > 128) {
    return false;
  }
  if (c.dim % 16 || c.dim < 16 || c.dim > 512) return false;
  if (c.value_dim % 16 || c.value_dim < 16 || c.value_dim > c.dim) return false;
  if (c.block % 16 || c.block < 16 || c.block > 128 || c.count < 1 || c.count > 128) return false;
  if (c.causal != 0 && c.causal != 1) return false;
  if (c.ends.size() != c.key_ends.size()) return false;
  if (!ArePrefixSums(c.ends, c.rows) || !ArePrefixSums(c.key_ends, c.tokens)) return false;
  size_t next = 0;
  int64_t row = 0, token = 0;
  for (size_t b = 0; b < c.ends.size(); ++b) {
    const int64_t blocks = (c.key_ends[b] - token + c.block - 1) / c.block;
    for (int64_t i = (c.ends[b] - row) * c.kv_heads * c.count; i > 0; --i, ++next) {
      if (c.topk[next] < -1 || c.topk[next] >= blocks) return false;
    }
    row = c.ends[b];
    token = c.key_ends[b];
  }
  return true;
}

Expected Oracle(const SelectedCase& c, const std::vector<float>& query,
                const std::vector<float>& key, const std::vector<float>& value, float scale) {
  Expected expected;
  const int64_t group = c.heads / c.kv_heads;
  size_t b = 0;
  for (int64_t row = 0; row < c.rows; ++row) {
    while (c.ends[b] <= row) ++b;
    const int64_t first_row = b == 0 ? 0 : c.ends[b - 1];
    const int64_t first_token = b == 0 ? 0 : c.key_ends[b - 1];
    for (int64_t head = 0; head < c.heads; ++head) {
      const int64_t kv_head = head / group;
      std::vector<std::pair<const float*, const float*>> all, seen;
      for (int64_t i = 0; i < c.count; ++i) {
        const int32_t block =
            c.topk[static_cast<size_t>((row * c.kv_heads + kv_head) * c.count + i)];
        if (block < 0) continue;
        for (int64_t p = block * c.block; p < (block + 1) * c.block; ++p) {
          if (p >= c.key_ends[b] - first_token) break;
          const int64_t place = (first_token + p) * c.kv_heads + kv_head;
          all.emplace_back(key.data() + place * c.dim, value.data() + place * c.value_dim);
          if (!c.causal || p <= row - first_row) seen.push_back(all.back());
        }
      }
      Attend(query.data() + (row * c.heads + head) * c.dim, seen.empty() ? all : seen, c.dim,
             c.value_dim, scale, !seen.empty(), &expected);
    }
  }
  return expected;
}

void Run(const SelectedCase& given, Runner* runner) {
  SelectedCase c = given;
  const Dims query_dims{c.rows, c.heads, c.dim}, key_dims{c.tokens, c.kv_heads, c.dim},
      value_dims{c.tokens, c.kv_heads, c.value_dim}, topk_dims{c.rows, c.kv_heads, c.count},
      output_dims{std::max<int64_t>(0, c.rows + c.more_rows), c.heads, c.value_dim};
  for (const Dims& dims : {query_dims, key_dims, value_dims, topk_dims, output_dims}) {
    if (!Possible(dims)) return;
  }
  c.topk.resize(static_cast<size_t>(Elements(topk_dims)), 0);  // where the shape was spoilt
  Random random(c.seed);
  const auto draw = [&](const Dims& dims) {
    std::vector<uint16_t> bits(static_cast<size_t>(Elements(dims)));
    Generator generator(c.dtype, c.values, &random);
    if (!bits.empty()) generator.Input(bits.data(), dims[0], dims[1], dims[2]);
    return bits;
  };
  const auto queries = draw(query_dims), keys = draw(key_dims), values = draw(value_dims);
  const float scale = OneOf<float>({0.25f, 1.0f, -0.5f, 0.0f, 0x1p-12f}, &random);
  const bool legal = IsLegal(c);
  Expected want;
  if (legal) {
    want = Oracle(c, ValuesOf(c.dtype, queries), ValuesOf(c.dtype, keys), ValuesOf(c.dtype, values),
                  scale);
  }

  Memory query("query", query_dims, queries, random.Between(0, 15));
  Memory key("key", key_dims, keys, random.Between(0, 15));
  Memory value("value", value_dims, values, random.Between(0, 15));
  Memory topk("topk_indices", topk_dims, c.topk, random.Between(0, 1));
  Memory ends("actual_seq_qlen", {}, c.ends, random.Between(0, 1));
  Memory key_ends("actual_seq_kvlen", {}, c.key_ends, random.Between(0, 1));
  Memory output("attention_out", output_dims, RandomBits(Elements(output_dims), &random),
                random.Between(0, 31));
  const NsaArray q = query.array(), k = key.array(), v = value.array(), t = topk.array(),
                 y = output.array();
  runner->Run({{&query, &key, &value, &topk, &ends, &key_ends},
               {&topk, &ends, &key_ends},
               {&output},
               legal && output_dims[0] == c.rows,
               /*same_bits=*/false,
               [&](int64_t threads, char* error, int64_t size) {
                 return nsa_selected_attention(
                     static_cast<int>(c.dtype), &q, &k, &v, &t, scale, c.heads, c.block, c.count,
                     c.causal, ends.as<int64_t>(), static_cast<int64_t>(c.ends.size()),
                     key_ends.as<int64_t>(), static_cast<int64_t>(c.key_ends.size()), &y, threads,
                     error, size);
               },
               [&] { return Deviation(c.dtype, output.as<uint16_t>(), want); }});
}

const Register<SelectedCase> part("nsa_selected_attention", Make, Spoil, Print, Run, {});

}  // namespace
}  // namespace nsa::cpu::fuzz
