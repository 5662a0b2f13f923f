// NsaCompressInfer in the fuzzer (../fuzzer.h). The oracle is written from docs/operators.md.
#include <numeric>
#include <set>

#include "fuzzer.h"
#include "operators/nsa_compress_infer/c_api.h"

namespace nsa::cpu::fuzz {
namespace {

struct DecodeCase {
  DType dtype;
  Values values;
  uint64_t seed;
  int64_t block, stride, page, pages, heads, dim, rows;  // rows: of the cache
  std::vector<int32_t> slots;
  std::vector<int64_t> lengths;
  int64_t max_pages;           // of the table; -1: there is none
  std::vector<int32_t> table;  // [slots, max_pages]

  int64_t batch() const { return static_cast<int64_t>(slots.size()); }
  bool has_table() const { return max_pages >= 0; }
  int64_t pages_each() const {
    if (has_table()) return max_pages;
    return batch() == 0 ? 0 : pages / batch();
  }
  bool writes(size_t b) const { return lengths[b] >= block && (lengths[b] - block) % stride == 0; }
};

std::string Print(const DecodeCase& c) {
  return Printer(c.dtype, c.values, c.seed)
      .Add("block", c.block)
      .Add("stride", c.stride)
      .Add("page", c.page)
      .Add("pages", c.pages)
      .Add("heads", c.heads)
      .Add("dim", c.dim)
      .Add("rows", c.rows)
      .Add("slots", c.slots)
      .Add("lengths", c.lengths)
      .Add("max_pages", c.max_pages)
      .Add("table", c.table)
      .text();
}

DecodeCase Make(Random* random) {
  DecodeCase c{};
  c.dtype = OneOf<DType>({DType::kFloat16, DType::kBFloat16}, random);
  c.values = static_cast<Values>(random->Between(0, kValueKinds - 1));
  c.block = 16 * random->Between(1, 7);
  c.stride = 16 * random->Between(1, c.block / 16);
  c.page = OneOf<int64_t>({64, 128}, random);
  c.heads = random->OneIn(8) ? random->Between(1, 63) : random->Between(1, 3);
  c.dim = 16 * (random->OneIn(4) ? random->Between(0, 16) : random->Between(1, 3));
  if (random->OneIn(12)) c.dim = 0;
  const int64_t batch = random->OneIn(10) ? 0 : random->Between(1, 5);
  const int64_t each = c.heads * c.dim > 1000 ? 1 : random->Between(0, 3);
  c.max_pages = random->OneIn(2) ? each : -1;
  c.pages = c.has_table() ? random->Between(each > 0, 5) : batch * each;
  if (batch == 0 && !c.has_table()) c.pages = random->Between(0, 2);
  c.rows = batch + random->Between(0, 3);
  std::vector<int32_t> rows(static_cast<size_t>(c.rows));
  std::iota(rows.begin(), rows.end(), 0);
  for (int64_t b = 0; b < batch; ++b) {
    const size_t left = rows.size() - static_cast<size_t>(b);
    std::swap(rows[static_cast<size_t>(b)],
              rows[static_cast<size_t>(b) + static_cast<size_t>(random->Next() % left)]);
    const int64_t longest = each * c.page, windows = (longest - c.block) / c.stride;
    const bool writes = longest >= c.block && !random->OneIn(4);
    c.lengths.push_back(writes ? c.block + c.stride * random->Between(0, windows)
                               : random->Between(0, longest));
    c.slots.push_back(rows[static_cast<size_t>(b)]);
  }
  // What is not read may be anything.
  for (size_t b = 0; b < c.slots.size(); ++b) {
    const bool writes = c.writes(b);
    if (!writes) c.slots[b] = static_cast<int32_t>(Hostile(c.rows, random));
    for (int64_t p = 0; p < c.max_pages; ++p) {
      const bool read =
          writes && p >= (c.lengths[b] - c.block) / c.page && p <= (c.lengths[b] - 1) / c.page;
      c.table.push_back(
          static_cast<int32_t>(read ? random->Between(0, c.pages - 1) : Hostile(c.pages, random)));
    }
  }
  return c;
}

void Spoil(DecodeCase* c, Random* random) {
  switch (random->Between(0, 18)) {
    case 0:
      return SpoilNumber(&c->block, random);
    case 1:
      return SpoilNumber(&c->stride, random);
    case 2:
      return SpoilNumber(&c->page, random);
    case 3:
      return SpoilNumber(&c->heads, random);
    case 4:
      return SpoilNumber(&c->dim, random);
    case 5:
      c->pages = random->Between(0, 7);
      return;
    case 6:
      c->rows = random->Between(0, c->rows);
      return;
    case 7:
      if (!c->lengths.empty()) c->lengths.pop_back();
      return;
    case 8:
    case 9:
      return SpoilList(&c->slots, c->rows, random);
    case 10:
    case 11:
    case 12:
      return SpoilList(&c->lengths, c->pages_each() * c->page, random);
    default:
      return SpoilList(&c->table, c->pages, random);
  }
}

// The physical page of token `t` of sequence `b`, as the array has it.
int64_t PageOf(const DecodeCase& c, size_t b, int64_t t) {
  const auto at = static_cast<int64_t>(b) * c.pages_each() + t / c.page;
  return c.has_table() ? c.table[static_cast<size_t>(at)] : at;
}

bool IsLegal(const DecodeCase& c) {
  if (c.dim % 16 != 0 || c.dim < 0 || c.dim > 256 || c.heads < 1 || c.heads > 63) return false;
  if (c.block % 16 != 0 || c.block < 16 || c.block > 127) return false;
  if (c.stride % 16 != 0 || c.stride < 16 || c.stride > c.block) return false;
  if (c.page != 64 && c.page != 128) return false;
  if (c.lengths.size() != c.slots.size()) return false;
  if (!c.has_table() && c.batch() != 0 && c.pages % c.batch() != 0) return false;
  std::set<int32_t> written;
  for (size_t b = 0; b < c.slots.size(); ++b) {
    if (c.lengths[b] < 0 || c.lengths[b] > c.pages_each() * c.page) return false;
    if (!c.writes(b)) continue;
    const int32_t slot = c.slots[b];
    if (slot < 0 || slot >= c.rows || !written.insert(slot).second) return false;
    for (int64_t t = c.lengths[b] - c.block; t < c.lengths[b]; ++t) {
      if (PageOf(c, b, t) < 0 || PageOf(c, b, t) >= c.pages) return false;
    }
  }
  return true;
}

void Oracle(const DecodeCase& c, const std::vector<float>& input, const std::vector<float>& weight,
            std::vector<uint16_t>* cache) {
  for (size_t b = 0; b < c.slots.size(); ++b) {
    if (!c.writes(b)) continue;
    for (int64_t n = 0; n < c.heads; ++n) {
      for (int64_t d = 0; d < c.dim; ++d) {
        float sum = 0;
        for (int64_t j = 0; j < c.block; ++j) {
          const int64_t t = c.lengths[b] - c.block + j;
          const int64_t row = PageOf(c, b, t) * c.page + t % c.page;
          const auto x = static_cast<size_t>((row * c.heads + n) * c.dim + d);
          const auto w = static_cast<size_t>(j * c.heads + n);
          const float product = input[x] * weight[w];
          sum = sum + product;
        }
        const auto y = static_cast<size_t>((c.slots[b] * c.heads + n) * c.dim + d);
        (*cache)[y] = NearestTo(c.dtype, sum);
      }
    }
  }
}

void Run(const DecodeCase& c, Runner* runner) {
  const Dims input_dims{c.pages, c.page, c.heads, c.dim}, weight_dims{Clamped(c.block), c.heads},
      cache_dims{c.rows, c.heads, c.dim};
  if (!Possible(input_dims) || !Possible(weight_dims) || !Possible(cache_dims)) return;
  Random random(c.seed);
  std::vector<uint16_t> inputs(static_cast<size_t>(Elements(input_dims)));
  std::vector<uint16_t> weights(static_cast<size_t>(Elements(weight_dims)));
  Generator generator(c.dtype, c.values, &random);
  generator.Weight(weights.data(), Clamped(c.block), c.heads);
  if (c.dim > 0) generator.Input(inputs.data(), c.pages * c.page, c.heads, c.dim);
  const std::vector<uint16_t> before = RandomBits(Elements(cache_dims), &random);
  std::vector<uint16_t> want = before;
  if (IsLegal(c)) Oracle(c, ValuesOf(c.dtype, inputs), ValuesOf(c.dtype, weights), &want);

  Memory input("input", input_dims, inputs, random.Between(0, 15));
  Memory weight("weight", weight_dims, weights, random.Between(0, 15));
  Memory slots("slot_mapping", {c.batch()}, c.slots, random.Between(0, 1));
  const auto count = static_cast<int64_t>(c.lengths.size());
  Memory lengths("actual_seq_len", {count}, c.lengths, random.Between(0, 1));
  Memory table("block_table", {c.batch(), c.pages_each()}, c.table, random.Between(0, 1));
  Memory cache("cache", cache_dims, before, random.Between(0, 31));
  const NsaArray x = input.array(), w = weight.array(), s = slots.array(), t = table.array(),
                 y = cache.array();
  const Node node{"NsaCompressInfer",
                  c.dtype,
                  {&input, &weight, &slots, &cache, &lengths, c.has_table() ? &table : nullptr},
                  {{"compress_block_size", c.block},
                   {"compress_stride", c.stride},
                   {"page_block_size", c.page}}};
  runner->Run(
      {{&input, &weight, &slots, &lengths, &table},
       {&slots, &lengths, &table},
       {&cache},
       IsLegal(c),
       /*same_bits=*/true,
       [&](int64_t threads, char* error, int64_t size) {
         return nsa_compress_infer(static_cast<int>(c.dtype), &x, &w, &s, c.block, c.stride, c.page,
                                   c.has_table() ? &t : nullptr, lengths.as<int64_t>(), count, &y,
                                   threads, error, size);
       },
       [&](bool exact) {
         std::vector<uint16_t> got(cache.as<uint16_t>(), cache.as<uint16_t>() + cache.size());
         // Elsewhere the rows that are written may differ, the others never; a row of zeros
         // may have been written with others' signs.
         const auto row = static_cast<size_t>(c.heads * c.dim);
         for (size_t i = 0; !exact && i < got.size(); ++i) {
           const size_t begin = i / row * row;
           const bool written = !std::equal(&want[begin], &want[begin] + row, &before[begin]);
           if (written || ((got[i] | want[i]) & 0x7FFF) == 0) got[i] = want[i];
         }
         return Difference(c.dtype, "cache", got.data(), want, cache_dims);
       },
       node});
}

const Register<DecodeCase> part("nsa_compress_infer", Make, Spoil, Print, Run, {});

}  // namespace
}  // namespace nsa::cpu::fuzz
