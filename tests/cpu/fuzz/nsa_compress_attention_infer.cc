// NsaCompressAttentionInfer in the fuzzer (../fuzzer.h).
#include "attention.h"
#include "operators/nsa_compress_attention_infer/c_api.h"

namespace nsa::cpu::fuzz {
namespace {

struct CompressDecodeCase {
  DType dtype;
  Values values;
  uint64_t seed;
  double scale;
  int64_t batch, heads, kv_heads, dim, value_dim, pages, max_pages, page_tokens;  // of the arrays
  int64_t head_num, key_value_head_num, block, count, page, window, stride;
  std::vector<int64_t> lengths;
  std::vector<int32_t> table;  // [batch, max_pages]
};

std::string Print(const CompressDecodeCase& c) {
  return Printer(c.dtype, c.values, c.seed)
      .Add("scale", c.scale)
      .Add("batch", c.batch)
      .Add("heads", c.heads)
      .Add("kv_heads", c.kv_heads)
      .Add("dim", c.dim)
      .Add("value_dim", c.value_dim)
      .Add("pages", c.pages)
      .Add("max_pages", c.max_pages)
      .Add("page_tokens", c.page_tokens)
      .Add("head_num", c.head_num)
      .Add("key_value_head_num", c.key_value_head_num)
      .Add("block", c.block)
      .Add("count", c.count)
      .Add("page", c.page)
      .Add("window", c.window)
      .Add("stride", c.stride)
      .Add("lengths", c.lengths)
      .Add("table", c.table)
      .text();
}

CompressDecodeCase Make(Random* random) {
  CompressDecodeCase c{};
  c.dtype = OneOf<DType>({DType::kFloat16, DType::kBFloat16}, random);
  c.values = random->OneIn(2) ? Values::kModerate
                              : static_cast<Values>(random->Between(0, kValueKinds - 1));
  c.batch = random->Between(0, 4);
  c.kv_heads = c.key_value_head_num = random->Between(1, 3);
  c.heads = c.head_num = c.kv_heads * (random->OneIn(6) ? 17 : random->Between(1, 4));
  c.dim = Multiple(random->OneIn(6) ? 512 : 128, random);
  c.value_dim = Multiple(c.dim, random);
  c.scale = Scale(c.dim, random);
  c.stride = 16 * OneOf<int64_t>({1, 1, 2, 4}, random);
  c.block = c.stride * random->Between(1, 128 / c.stride);
  c.window = c.stride + 16 * random->Between(0, (c.block - c.stride) / 16);
  c.count = random->Between(1, 6);
  c.page = c.page_tokens = Multiple(random->OneIn(8) ? 1024 : 128, random);
  c.max_pages = random->Between(0, c.page > 128 ? 1 : 4);
  c.pages = random->Between(1, 4);
  for (int64_t b = 0; b < c.batch; ++b) {
    c.lengths.push_back(random->OneIn(5) ? 0 : random->Between(0, c.max_pages * c.page));
    for (int64_t p = 0; p < c.max_pages; ++p) {
      // What is not read may be anything.
      const bool read = p < Ceil(c.lengths.back(), c.page);
      c.table.push_back(
          static_cast<int32_t>(read ? random->Between(0, c.pages - 1) : Hostile(c.pages, random)));
    }
  }
  return c;
}

void Spoil(CompressDecodeCase* c, Random* random) {
  switch (random->Between(0, 20)) {
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
      return SpoilNumber(&c->page, random);
    case 7:
      c->pages = random->Between(0, 3);
      return;
    case 8:
      return SpoilNumber(&c->key_value_head_num, random);
    case 9:
      if (!c->lengths.empty()) c->lengths.pop_back();
      return;
    case 10:
      c->count = OneOf<int64_t>({0, -1, 128, 129}, random);
      return;
    case 11:
      return SpoilList(&c->lengths, c->max_pages * c->page, random);
    default:
      return SpoilList(&c->table, c->pages, random);
  }
}

bool IsLegal(const CompressDecodeCase& c) {
  if (!IsFloat32(c.scale) || c.head_num != c.heads || c.count < 1 || c.count > 128) return false;
  if (c.key_value_head_num != c.kv_heads || c.page != c.page_tokens) return false;
  if (!IsMultiple(c.dim, 512) || !IsMultiple(c.value_dim, c.dim)) return false;
  if (!IsMultiple(c.block, 128) || !IsMultiple(c.window, c.block)) return false;
  if (!IsMultiple(c.stride, c.window) || c.block % c.stride != 0) return false;
  if (!IsMultiple(c.page, 1024)) return false;
  if (static_cast<int64_t>(c.lengths.size()) != c.batch) return false;
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t length = c.lengths[static_cast<size_t>(b)];
    if (length < 0 || length > c.max_pages * c.page) return false;
    for (int64_t p = 0; p < Ceil(length, c.page); ++p) {
      const int64_t page = c.table[static_cast<size_t>(b * c.max_pages + p)];
      if (page < 0 || page >= c.pages) return false;
    }
  }
  return true;
}

struct Expected {
  std::vector<Bounded> output;               // attention_out
  std::vector<std::vector<Bounded>> scores;  // of each row of topk_indices
};

// Of a legal case.
Expected Oracle(const CompressDecodeCase& c, const std::vector<float>& query,
                const std::vector<float>& key, const std::vector<float>& value) {
  Expected want;
  const int64_t group = c.heads / c.kv_heads;
  const float scale = static_cast<float>(c.scale);
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t length = c.lengths[static_cast<size_t>(b)];
    // A sequence shorter than a window still selects its only block.
    const int64_t blocks = length == 0 ? 1 : Ceil((length - 1) * c.stride + c.window, c.block);
    for (int64_t g = 0; g < c.kv_heads; ++g) {
      std::vector<Token> tokens;
      for (int64_t j = 0; j < length; ++j) {
        const int64_t page = c.table[static_cast<size_t>(b * c.max_pages + j / c.page)];
        const int64_t row = (page * c.page + j % c.page) * c.kv_heads + g;
        tokens.push_back({key.data() + row * c.dim, value.data() + row * c.value_dim, false});
      }
      std::vector<std::vector<Bounded>> heads;
      for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        const float* row = query.data() + (b * c.heads + h) * c.dim;
        heads.push_back(Probabilities(row, tokens, c.dim, scale));
        for (int64_t d = 0; d < c.value_dim; ++d) {
          want.output.push_back(Output(heads.back(), tokens, d));
        }
      }
      want.scores.push_back(Scores(heads, blocks, c.block / c.stride, c.window / c.stride));
    }
  }
  return want;
}

void Run(const CompressDecodeCase& c, Runner* runner) {
  const Dims query_dims{c.batch, c.heads, c.dim},
      key_dims{c.pages, c.page_tokens, c.kv_heads, c.dim},
      value_dims{c.pages, c.page_tokens, c.kv_heads, c.value_dim},
      output_dims{c.batch, c.heads, c.value_dim}, topk_dims{c.batch, c.kv_heads, Clamped(c.count)};
  for (const Dims& dims : {query_dims, key_dims, value_dims, output_dims, topk_dims}) {
    if (!Possible(dims)) return;
  }
  Random random(c.seed);
  const Data queries(c.dtype, c.values, query_dims, &random);
  const Data keys(c.dtype, c.values, key_dims, &random);
  const Data values(c.dtype, c.values, value_dims, &random);
  const bool legal = IsLegal(c);
  Expected want;
  if (legal) want = Oracle(c, queries.values, keys.values, values.values);

  Memory query("query", query_dims, queries.bits, random.Between(0, 15));
  Memory key("key", key_dims, keys.bits, random.Between(0, 15));
  Memory value("value", value_dims, values.bits, random.Between(0, 15));
  Memory table("block_table", {c.batch, c.max_pages}, c.table, random.Between(0, 1));
  Memory lengths("actual_cmp_seq_kvlen", {}, c.lengths, random.Between(0, 1));
  Memory output("attention_out", output_dims, RandomBits(Elements(output_dims), &random),
                random.Between(0, 31));
  Memory topk("topk_indices", topk_dims,
              std::vector<int32_t>(static_cast<size_t>(Elements(topk_dims)), -77),
              random.Between(0, 15));
  const NsaArray q = query.array(), k = key.array(), v = value.array(), t = table.array(),
                 y = output.array(), i = topk.array();
  const auto call = [&](int64_t threads, char* error, int64_t size) {
    return nsa_compress_attention_infer(
        static_cast<int>(c.dtype), &q, &k, &v, c.scale, c.head_num, c.key_value_head_num, c.block,
        c.count, c.page, c.window, c.stride, &t, lengths.as<int64_t>(),
        static_cast<int64_t>(c.lengths.size()), &y, &i, threads, error, size);
  };
  const auto judge = [&] {
    std::string wrong = Difference(c.dtype, "attention_out", output.as<uint16_t>(), want.output);
    for (size_t row = 0; row < want.scores.size() && wrong.empty(); ++row) {
      const auto blocks = static_cast<int64_t>(want.scores[row].size());
      std::vector<bool> forced;
      for (int64_t s = 0; s < blocks; ++s) forced.push_back(s == 0 || s >= blocks - 2);
      const int32_t* got = topk.as<int32_t>() + row * static_cast<size_t>(c.count);
      wrong = WrongRanks(got, c.count, want.scores[row], forced);
      if (!wrong.empty()) wrong = "topk_indices, row " + std::to_string(row) + ": " + wrong;
    }
    return wrong;
  };
  runner->Run({{&query, &key, &value, &table, &lengths},
               {&table, &lengths},
               {&output, &topk},
               legal,
               /*same_bits=*/false,
               call,
               judge});
}

const Register<CompressDecodeCase> part("nsa_compress_attention_infer", Make, Spoil, Print, Run,
                                        {});

}  // namespace
}  // namespace nsa::cpu::fuzz
