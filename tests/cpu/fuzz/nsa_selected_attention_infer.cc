// NsaSelectedAttentionInfer in the fuzzer (../fuzzer.h). The oracle is written from
// docs/operators.md.
#include "fuzz/attended.h"
#include "operators/nsa_selected_attention_infer/c_api.h"

namespace nsa::cpu::fuzz {
namespace {

struct SelectedDecodeCase {
  DType dtype;
  Values values;
  uint64_t seed;
  int64_t batch, heads, kv_heads, dim, value_dim, block, count, page, pages, max_pages;
  std::vector<int64_t> lengths;
  std::vector<int32_t> topk;   // [batch, kv_heads, count]
  std::vector<int32_t> table;  // [batch, max_pages]
  int64_t more_rows;           // that the output has than it must: 0 if legal
};

std::string Print(const SelectedDecodeCase& c) {
  return Printer(c.dtype, c.values, c.seed)
      .Add("batch", c.batch)
      .Add("heads", c.heads)
      .Add("kv_heads", c.kv_heads)
      .Add("dim", c.dim)
      .Add("value_dim", c.value_dim)
      .Add("block", c.block)
      .Add("count", c.count)
      .Add("page", c.page)
      .Add("pages", c.pages)
      .Add("max_pages", c.max_pages)
      .Add("lengths", c.lengths)
      .Add("topk", c.topk)
      .Add("table", c.table)
      .Add("more_rows", c.more_rows)
      .text();
}

// Calls take(entry of topk, page of the sequence) for each page that a selected token lies on.
template <class Take>
void ForEachPage(const SelectedDecodeCase& c, size_t b, Take take) {
  const auto each = static_cast<size_t>(c.kv_heads * c.count);
  for (size_t i = b * each; i < (b + 1) * each; ++i) {
    const int64_t first = c.topk[i] * c.block, end = std::min(first + c.block, c.lengths[b]);
    for (int64_t t = first; first >= 0 && t < end; t += 16) take(t / c.page);
  }
}

SelectedDecodeCase Make(Random* random) {
  SelectedDecodeCase c{};
  c.dtype = OneOf<DType>({DType::kFloat16, DType::kBFloat16}, random);
  c.values = static_cast<Values>(random->Between(0, kValueKinds - 1));
  c.batch = random->OneIn(10) ? 0 : random->Between(1, 4);
  c.kv_heads = random->Between(1, 3);
  c.heads = c.kv_heads * (random->OneIn(8) ? random->Between(1, 128) : random->Between(1, 6));
  c.dim = 16 * (random->OneIn(6) ? random->Between(1, 32) : random->Between(1, 4));
  c.value_dim = 16 * random->Between(1, c.dim / 16);
  c.block = 16 * (random->OneIn(2) ? random->Between(1, 8) : random->Between(1, 2));
  c.count = random->OneIn(20) ? 128 : random->Between(1, 5);
  c.page = 16 * (random->OneIn(6) ? random->Between(1, 64) : random->Between(1, 8));
  c.pages = random->Between(1, 6);
  c.max_pages = random->Between(0, 4);
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t longest = std::min<int64_t>(c.max_pages * c.page, 300);
    c.lengths.push_back(random->OneIn(5) ? 0 : random->Between(0, longest));
    const int64_t blocks = (c.lengths.back() + c.block - 1) / c.block;
    for (int64_t i = 0; i < c.kv_heads * c.count; ++i) {
      c.topk.push_back(static_cast<int32_t>(random->Between(-1, blocks - 1)));
    }
    // What is not read may be anything.
    for (int64_t p = 0; p < c.max_pages; ++p) {
      c.table.push_back(static_cast<int32_t>(Hostile(c.pages, random)));
    }
    ForEachPage(c, static_cast<size_t>(b), [&](int64_t p) {
      c.table[static_cast<size_t>(b * c.max_pages + p)] =
          static_cast<int32_t>(random->Between(0, c.pages - 1));
    });
  }
  return c;
}

void Spoil(SelectedDecodeCase* c, Random* random) {
  switch (random->Between(0, 15)) {
    case 0:
      return SpoilNumber(&c->batch, random);
    case 1:
      return SpoilNumber(&c->heads, random);
    case 2:
      return SpoilNumber(&c->kv_heads, random);
    case 3:
      return SpoilNumber(&c->dim, random);
    case 4:
      return SpoilNumber(&c->value_dim, random);
    case 5:
      return SpoilNumber(&c->block, random);
    case 6:
      return SpoilNumber(&c->count, random);
    case 7:
      return SpoilNumber(&c->page, random);
    case 8:
      c->pages = random->Between(0, 3);
      return;
    case 9:
      c->more_rows = OneOf<int64_t>({-1, 1, 2}, random);
      return;
    case 10:
      if (!c->lengths.empty()) c->lengths.pop_back();
      return;
    case 11:
      return SpoilList(&c->lengths, c->max_pages * c->page, random);
    case 12:
    case 13:
      return SpoilList(&c->topk, 300 / c->block, random);
    default:
      return SpoilList(&c->table, c->pages, random);
  }
}

bool IsLegal(const SelectedDecodeCase& c) {
  if (c.heads < 1 || c.kv_heads < 1 || c.heads % c.kv_heads || c.heads / c.kv_heads > 128) {
    return false;
  }
  if (c.dim % 16 || c.dim < 16 || c.dim > 512) return false;
  if (c.value_dim % 16 || c.value_dim < 16 || c.value_dim > c.dim) return false;
  if (c.block % 16 || c.block < 16 || c.block > 128 || c.count < 1 || c.count > 128) return false;
  if (c.page % 16 || c.page < 16 || c.page > 1024) return false;
  if (static_cast<int64_t>(c.lengths.size()) != c.batch) return false;
  for (size_t b = 0; b < c.lengths.size(); ++b) {
    if (c.lengths[b] < 0 || c.lengths[b] > c.max_pages * c.page) return false;
    const int64_t blocks = (c.lengths[b] + c.block - 1) / c.block;
    const auto each = static_cast<size_t>(c.kv_heads * c.count);
    for (size_t i = b * each; i < (b + 1) * each; ++i) {
      if (c.topk[i] < -1 || c.topk[i] >= blocks) return false;
    }
    bool legal = true;
    ForEachPage(c, b, [&](int64_t p) {
      const int32_t page = c.table[b * static_cast<size_t>(c.max_pages) + static_cast<size_t>(p)];
      legal = legal && page >= 0 && page < c.pages;
    });
    if (!legal) return false;
  }
  return true;
}

Expected Oracle(const SelectedDecodeCase& c, const std::vector<float>& query,
                const std::vector<float>& key, const std::vector<float>& value, float scale) {
  Expected expected;
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t head = 0; head < c.heads; ++head) {
      const int64_t kv_head = head / (c.heads / c.kv_heads);
      std::vector<std::pair<const float*, const float*>> tokens;
      for (int64_t i = 0; i < c.count; ++i) {
        const int64_t block = c.topk[static_cast<size_t>((b * c.kv_heads + kv_head) * c.count + i)];
        const int64_t end = std::min((block + 1) * c.block, c.lengths[static_cast<size_t>(b)]);
        for (int64_t t = block * c.block; block >= 0 && t < end; ++t) {
          const int64_t page = c.table[static_cast<size_t>(b * c.max_pages + t / c.page)];
          const int64_t place = (page * c.page + t % c.page) * c.kv_heads + kv_head;
          tokens.emplace_back(key.data() + place * c.dim, value.data() + place * c.value_dim);
        }
      }
      Attend(query.data() + (b * c.heads + head) * c.dim, tokens, c.dim, c.value_dim, scale, true,
             &expected);
    }
  }
  return expected;
}

void Run(const SelectedDecodeCase& given, Runner* runner) {
  SelectedDecodeCase c = given;
  const Dims query_dims{c.batch, c.heads, c.dim}, key_dims{c.pages, c.page, c.kv_heads, c.dim},
      value_dims{c.pages, c.page, c.kv_heads, c.value_dim}, topk_dims{c.batch, c.kv_heads, c.count},
      table_dims{c.batch, c.max_pages},
      output_dims{std::max<int64_t>(0, c.batch + c.more_rows), c.heads, c.value_dim};
  for (const Dims& dims : {query_dims, key_dims, value_dims, topk_dims, table_dims, output_dims}) {
    if (!Possible(dims)) return;
  }
  c.topk.resize(static_cast<size_t>(Elements(topk_dims)), 0);  // where the shape was spoilt
  c.table.resize(static_cast<size_t>(Elements(table_dims)), 0);
  Random random(c.seed);
  const auto draw = [&](const Dims& dims) {
    std::vector<uint16_t> bits(static_cast<size_t>(Elements(dims)));
    const int64_t last = dims.back(), heads = dims[dims.size() - 2];
    Generator generator(c.dtype, c.values, &random);
    if (!bits.empty()) {
      generator.Input(bits.data(), static_cast<int64_t>(bits.size()) / heads / last, heads, last);
    }
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
  Memory table("block_table", table_dims, c.table, random.Between(0, 1));
  Memory lengths("actual_seq_kvlen", {}, c.lengths, random.Between(0, 1));
  Memory output("attention_out", output_dims, RandomBits(Elements(output_dims), &random),
                random.Between(0, 31));
  const NsaArray q = query.array(), k = key.array(), v = value.array(), t = topk.array(),
                 p = table.array(), y = output.array();
  runner->Run({{&query, &key, &value, &topk, &table, &lengths},
               {&topk, &table, &lengths},
               {&output},
               legal && output_dims[0] == c.batch,
               /*same_bits=*/false,
               [&](int64_t threads, char* error, int64_t size) {
                 return nsa_selected_attention_infer(
                     static_cast<int>(c.dtype), &q, &k, &v, &t, scale, c.heads, c.kv_heads, c.block,
                     c.count, c.page, &p, lengths.as<int64_t>(),
                     static_cast<int64_t>(c.lengths.size()), &y, threads, error, size);
               },
               [&] { return Deviation(c.dtype, output.as<uint16_t>(), want); }});
}

const Register<SelectedDecodeCase> part("nsa_selected_attention_infer", Make, Spoil, Print, Run,
                                        {});

}  // namespace
}  // namespace nsa::cpu::fuzz
