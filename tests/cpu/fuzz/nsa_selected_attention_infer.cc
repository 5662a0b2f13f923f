// NsaSelectedAttentionInfer in the fuzzer (../fuzzer.h).
#include "attention.h"
#include "operators/nsa_selected_attention_infer/c_api.h"

namespace nsa::cpu::fuzz {
namespace {

struct SelectedDecodeCase {
  DType dtype;
  Values values;
  uint64_t seed;
  double scale;
  int64_t batch, heads, kv_heads, dim, value_dim, pages, max_pages;  // of the arrays
  int64_t head_num, key_value_head_num, block, columns, count, page_tokens,
      page;  // columns: of topk
  std::vector<int64_t> lengths;
  std::vector<int32_t> topk;   // [batch, kv_heads, columns]
  std::vector<int32_t> table;  // [batch, max_pages]
};

std::string Print(const SelectedDecodeCase& c) {
  return Printer(c.dtype, c.values, c.seed)
      .Add("scale", c.scale)
      .Add("batch", c.batch)
      .Add("heads", c.heads)
      .Add("kv_heads", c.kv_heads)
      .Add("dim", c.dim)
      .Add("value_dim", c.value_dim)
      .Add("pages", c.pages)
      .Add("max_pages", c.max_pages)
      .Add("head_num", c.head_num)
      .Add("key_value_head_num", c.key_value_head_num)
      .Add("block", c.block)
      .Add("columns", c.columns)
      .Add("count", c.count)
      .Add("page_tokens", c.page_tokens)
      .Add("page", c.page)
      .Add("lengths", c.lengths)
      .Add("topk", c.topk)
      .Add("table", c.table)
      .text();
}

// The logical pages of the tokens of sequence `b`'s chosen blocks. Its lengths and blocks are
// legal.
std::vector<bool> PagesRead(const SelectedDecodeCase& c, int64_t b) {
  std::vector<bool> read(static_cast<size_t>(c.max_pages));
  const int64_t length = c.lengths[static_cast<size_t>(b)];
  for (int64_t i = 0; i < c.kv_heads * c.columns; ++i) {
    const int64_t block = c.topk[static_cast<size_t>(b * c.kv_heads * c.columns + i)];
    for (int64_t p = block * c.block; block >= 0 && p < std::min((block + 1) * c.block, length);
         ++p) {
      read[static_cast<size_t>(p / c.page)] = true;
    }
  }
  return read;
}

SelectedDecodeCase Make(Random* random) {
  SelectedDecodeCase c{};
  c.dtype = OneOf<DType>({DType::kFloat16, DType::kBFloat16}, random);
  c.values = random->OneIn(2) ? Values::kModerate
                              : static_cast<Values>(random->Between(0, kValueKinds - 1));
  c.batch = random->Between(0, 4);
  c.kv_heads = c.key_value_head_num = random->Between(1, 3);
  c.heads = c.head_num = c.kv_heads * (random->OneIn(6) ? 17 : random->Between(1, 4));
  c.dim = Multiple(random->OneIn(6) ? 512 : 128, random);
  c.value_dim = Multiple(c.dim, random);
  c.scale = Scale(c.dim, random);
  c.block = Multiple(128, random);
  c.page = c.page_tokens = Multiple(random->OneIn(8) ? 1024 : 128, random);
  c.columns = c.count = random->Between(1, 5);
  c.max_pages = random->Between(0, c.page > 128 ? 1 : 4);
  c.pages = random->Between(1, 4);
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t length = random->OneIn(5) ? 0 : random->Between(0, c.max_pages * c.page);
    c.lengths.push_back(length);
    for (int64_t i = c.kv_heads * c.columns; i > 0; --i) {
      c.topk.push_back(static_cast<int32_t>(random->Between(-1, Ceil(length, c.block) - 1)));
    }
    for (const bool read : PagesRead(c, b)) {
      // What is not read may be anything.
      c.table.push_back(
          static_cast<int32_t>(read ? random->Between(0, c.pages - 1) : Hostile(c.pages, random)));
    }
  }
  return c;
}

void Spoil(SelectedDecodeCase* c, Random* random) {
  switch (random->Between(0, 12)) {
    case 0:
      return SpoilNumber(&c->head_num, random);
    case 1:
      return SpoilNumber(&c->block, random);
    case 2:
      return SpoilNumber(&c->count, random);
    case 3:
      return SpoilNumber(&c->key_value_head_num, random);
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
      return SpoilList(&c->lengths, c->max_pages * c->page, random);
    case 9:
      if (!c->lengths.empty()) c->lengths.pop_back();
      return;
    case 10:
      return SpoilList(&c->table, c->pages, random);
    default:
      return SpoilList(&c->topk, 4, random);
  }
}

bool IsLegal(const SelectedDecodeCase& c) {
  if (!IsFloat32(c.scale) || c.head_num != c.heads || c.count != c.columns) return false;
  if (c.key_value_head_num != c.kv_heads || c.page != c.page_tokens) return false;
  if (!IsMultiple(c.dim, 512) || !IsMultiple(c.value_dim, c.dim)) return false;
  if (!IsMultiple(c.block, 128) || !IsMultiple(c.page, 1024)) return false;
  if (static_cast<int64_t>(c.lengths.size()) != c.batch) return false;
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t length = c.lengths[static_cast<size_t>(b)];
    if (length < 0 || length > c.max_pages * c.page) return false;
    for (int64_t i = 0; i < c.kv_heads * c.columns; ++i) {
      const int64_t block = c.topk[static_cast<size_t>(b * c.kv_heads * c.columns + i)];
      if (block < -1 || block >= Ceil(length, c.block)) return false;
    }
    const std::vector<bool> read = PagesRead(c, b);
    for (int64_t p = 0; p < c.max_pages; ++p) {
      const int64_t page = c.table[static_cast<size_t>(b * c.max_pages + p)];
      if (read[static_cast<size_t>(p)] && (page < 0 || page >= c.pages)) return false;
    }
  }
  return true;
}

// attention_out of a legal case.
std::vector<Bounded> Oracle(const SelectedDecodeCase& c, const std::vector<float>& query,
                            const std::vector<float>& key, const std::vector<float>& value) {
  std::vector<Bounded> output;
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t h = 0; h < c.heads; ++h) {
      const int64_t g = h / (c.heads / c.kv_heads);
      const int64_t length = c.lengths[static_cast<size_t>(b)];
      std::vector<Token> tokens;
      for (int64_t i = 0; i < c.columns; ++i) {
        const int64_t block = c.topk[static_cast<size_t>((b * c.kv_heads + g) * c.columns + i)];
        if (block < 0) continue;
        for (int64_t p = block * c.block; p < std::min((block + 1) * c.block, length); ++p) {
          const int64_t page = c.table[static_cast<size_t>(b * c.max_pages + p / c.page)];
          const int64_t row = (page * c.page + p % c.page) * c.kv_heads + g;
          tokens.push_back({key.data() + row * c.dim, value.data() + row * c.value_dim, false});
        }
      }
      const float scale = static_cast<float>(c.scale);
      const auto p = Probabilities(query.data() + (b * c.heads + h) * c.dim, tokens, c.dim, scale);
      for (int64_t d = 0; d < c.value_dim; ++d) output.push_back(Output(p, tokens, d));
    }
  }
  return output;
}

void Run(const SelectedDecodeCase& c, Runner* runner) {
  const Dims query_dims{c.batch, c.heads, c.dim},
      key_dims{c.pages, c.page_tokens, c.kv_heads, c.dim},
      value_dims{c.pages, c.page_tokens, c.kv_heads, c.value_dim},
      output_dims{c.batch, c.heads, c.value_dim};
  if (!Possible(query_dims) || !Possible(value_dims) || !Possible(key_dims)) return;
  if (!Possible(output_dims)) return;
  Random random(c.seed);
  const Data queries(c.dtype, c.values, query_dims, &random);
  const Data keys(c.dtype, c.values, key_dims, &random);
  const Data values(c.dtype, c.values, value_dims, &random);
  const bool legal = IsLegal(c);
  std::vector<Bounded> want;
  if (legal) want = Oracle(c, queries.values, keys.values, values.values);

  Memory query("query", query_dims, queries.bits, random.Between(0, 15));
  Memory key("key", key_dims, keys.bits, random.Between(0, 15));
  Memory value("value", value_dims, values.bits, random.Between(0, 15));
  Memory topk("topk_indices", {c.batch, c.kv_heads, c.columns}, c.topk, random.Between(0, 1));
  Memory table("block_table", {c.batch, c.max_pages}, c.table, random.Between(0, 1));
  Memory lengths("actual_seq_kvlen", {}, c.lengths, random.Between(0, 1));
  Memory output("attention_out", output_dims, RandomBits(Elements(output_dims), &random),
                random.Between(0, 31));
  const NsaArray q = query.array(), k = key.array(), v = value.array(), i = topk.array(),
                 t = table.array(), y = output.array();
  runner->Run({{&query, &key, &value, &topk, &table, &lengths},
               {&topk, &table, &lengths},
               {&output},
               legal,
               /*same_bits=*/false,
               [&](int64_t threads, char* error, int64_t size) {
                 return nsa_selected_attention_infer(
                     static_cast<int>(c.dtype), &q, &k, &v, &i, c.scale, c.head_num,
                     c.key_value_head_num, c.block, c.count, c.page, &t, lengths.as<int64_t>(),
                     static_cast<int64_t>(c.lengths.size()), &y, threads, error, size);
               },
               [&] { return Difference(c.dtype, "attention_out", output.as<uint16_t>(), want); }});
}

const Register<SelectedDecodeCase> part("nsa_selected_attention_infer", Make, Spoil, Print, Run,
                                        {{.dtype = DType::kFloat16,
                                          .values = Values::kSpecial,
                                          .seed = 11526770270800881274u,
                                          .scale = 0.17677669529663687,
                                          .batch = 2,
                                          .heads = 17,
                                          .kv_heads = 1,
                                          .dim = 32,
                                          .value_dim = 32,
                                          .pages = 4,
                                          .max_pages = 1,
                                          .head_num = 17,
                                          .key_value_head_num = 1,
                                          .block = 16,
                                          .columns = 1,
                                          .count = 1,
                                          .page_tokens = 32,
                                          .page = 32,
                                          .lengths = {29, 11},
                                          .topk = {-1, 0},
                                          .table = {8, 1}},
                                         // No sequences, of more heads than can be counted times k
                                         {.dtype = DType::kFloat16,
                                          .values = Values::kModerate,
                                          .seed = 4u,
                                          .scale = 1,
                                          .batch = 0,
                                          .heads = int64_t{1} << 58,
                                          .kv_heads = int64_t{1} << 58,
                                          .dim = 64,
                                          .value_dim = 64,
                                          .pages = 0,
                                          .max_pages = 0,
                                          .head_num = int64_t{1} << 58,
                                          .key_value_head_num = int64_t{1} << 58,
                                          .block = 16,
                                          .columns = 128,
                                          .count = 128,
                                          .page_tokens = 16,
                                          .page = 16,
                                          .lengths = {},
                                          .topk = {},
                                          .table = {}}});

}  // namespace
}  // namespace nsa::cpu::fuzz
