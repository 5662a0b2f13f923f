// NsaSelectedAttentionInfer in the fuzzer (../fuzzer.h).
#include "attention_case.h"
#include "operators/nsa_selected_attention_infer/c_api.h"

namespace nsa::cpu::fuzz {
namespace {

struct SelectedDecodeCase {
  DType dtype;
  Values values;
  uint64_t seed;
  int64_t batch;
  Heads of;
  Pages paged;
  Blocks chosen;
};

std::string Print(const SelectedDecodeCase& c) {
  return Printer(c.dtype, c.values, c.seed)
      .Add("batch", c.batch)
      .Add("of", Print(c.of))
      .Add("paged", Print(c.paged))
      .Add("chosen", Print(c.chosen))
      .text();
}

int64_t LengthOf(const SelectedDecodeCase& c, int64_t b) {
  return c.paged.lengths[static_cast<size_t>(b)];
}

// The pages of the tokens of sequence `b`'s chosen blocks. Its lengths and blocks are legal.
std::vector<bool> PagesRead(const SelectedDecodeCase& c, int64_t b) {
  std::vector<bool> read(static_cast<size_t>(c.paged.max_pages));
  for (int64_t g = 0; g < c.of.kv_heads; ++g) {
    ForChosen(c.chosen, b * c.of.kv_heads + g, LengthOf(c, b),
              [&](int64_t p) { read[static_cast<size_t>(p / c.paged.page)] = true; });
  }
  return read;
}

SelectedDecodeCase Make(Random* random) {
  SelectedDecodeCase c{};
  c.dtype = AnyType(random);
  c.values = AnyValues(random);
  c.batch = random->Between(0, 4);
  c.of = MakeHeads(random);
  c.paged = MakePages(c.batch, c.of.kv_heads, random);
  c.chosen.block = Multiple(128, random);
  c.chosen.columns = c.chosen.count = random->OneIn(3) ? 1 : random->Between(1, 5);
  const bool differ = random->OneIn(2);
  for (int64_t b = 0; b < c.batch; ++b) {
    AddRows(1, c.of.kv_heads, LengthOf(c, b), differ, &c.chosen, random);
    FillTable(PagesRead(c, b), &c.paged, random);
  }
  return c;
}

// How many blocks element `i` of topk_indices has to choose from.
int64_t BlocksOf(const SelectedDecodeCase& c, size_t i) {
  const int64_t b = static_cast<int64_t>(i) / (c.of.kv_heads * c.chosen.columns);
  return Ceil(LengthOf(c, b), c.chosen.block);
}

void Spoil(SelectedDecodeCase* c, Random* random) {
  if (random->OneIn(6)) return Spoil(&c->of, random);
  if (random->OneIn(2)) return Spoil(&c->paged, random);
  Spoil(&c->chosen, [&](size_t i) { return BlocksOf(*c, i); }, random);
}

bool IsLegal(const SelectedDecodeCase& c) {
  if (!IsLegal(c.of) || !IsLegal(c.chosen)) return false;
  if (!HasLegalLengths(c.paged, c.batch, c.of.kv_heads)) return false;
  for (size_t i = 0; i < c.chosen.topk.size(); ++i) {
    if (c.chosen.topk[i] < -1 || c.chosen.topk[i] >= BlocksOf(c, i)) return false;
  }
  for (int64_t b = 0; b < c.batch; ++b) {
    if (!HasLegalTable(c.paged, b, PagesRead(c, b))) return false;
  }
  return true;
}

// attention_out of a legal case.
std::vector<Bounded> Oracle(const SelectedDecodeCase& c, const Arrays& arrays) {
  std::vector<Bounded> output;
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t g = 0; g < c.of.kv_heads; ++g) {
      std::vector<Token> tokens;
      ForChosen(c.chosen, b * c.of.kv_heads + g, LengthOf(c, b), [&](int64_t p) {
        tokens.push_back(arrays.At(c.of, c.paged.Place(b, p), g, false));
      });
      Attend(c.of, arrays.queries.values.data() + b * c.of.heads * c.of.dim, g, tokens, &output);
    }
  }
  return output;
}

void Run(const SelectedDecodeCase& c, Runner* runner) {
  const Dims key_dims{c.paged.pages, c.paged.page_tokens, c.of.kv_heads};
  if (!Arrays::ArePossible(c.of, c.batch, key_dims)) return;
  Random random(c.seed);
  Arrays arrays(c.dtype, c.values, c.of, c.batch, key_dims, &random);
  const bool legal = IsLegal(c);
  std::vector<Bounded> want;
  if (legal) want = Oracle(c, arrays);

  // An element before it: not null, which says that nobody knows them.
  Memory topk("topk_indices", {c.batch, c.of.kv_heads, c.chosen.columns}, c.chosen.topk, 1);
  Memory table("block_table", {c.batch, c.paged.max_pages}, c.paged.table, random.Between(0, 1));
  const auto count = static_cast<int64_t>(c.paged.lengths.size());
  Memory lengths("actual_seq_kvlen", {count}, c.paged.lengths, random.Between(0, 1));
  const NsaArray q = arrays.query.array(), k = arrays.key.array(), v = arrays.value.array(),
                 i = topk.array(), t = table.array(), y = arrays.output.array();
  const auto call = [&](int64_t threads, char* error, int64_t size) {
    return nsa_selected_attention_infer(static_cast<int>(c.dtype), &q, &k, &v, &i, c.of.scale,
                                        c.of.head_num, c.paged.key_value_head_num, c.chosen.block,
                                        c.chosen.count, c.paged.page, &t, lengths.as<int64_t>(),
                                        count, &y, threads, error, size);
  };
  const Node node{"NsaSelectedAttentionInfer",
                  c.dtype,
                  {&arrays.query, &arrays.key, &arrays.value, &topk, &lengths, &table},
                  {{"scale_value", c.of.scale},
                   {"head_num", c.of.head_num},
                   {"key_value_head_num", c.paged.key_value_head_num},
                   {"select_block_size", c.chosen.block},
                   {"select_block_count", c.chosen.count},
                   {"page_block_size", c.paged.page}}};
  runner->Run({{&arrays.query, &arrays.key, &arrays.value, &topk, &table, &lengths},
               {&topk, &table, &lengths},
               {&arrays.output},
               legal,
               /*same_bits=*/false,
               call,
               [&](bool exact) {
                 const auto* got = arrays.output.as<uint16_t>();
                 return exact ? Difference(c.dtype, "attention_out", got, want) : "";
               },
               node});
}

const Register<SelectedDecodeCase> part(
    "nsa_selected_attention_infer", Make, Spoil, Print, Run,
    {{.dtype = DType::kFloat16,
      .values = Values::kSpecial,
      .seed = 11526770270800881274u,
      .batch = 2,
      .of = {.scale = 0.17677669529663687,
             .heads = 17,
             .kv_heads = 1,
             .dim = 32,
             .value_dim = 32,
             .head_num = 17},
      .paged = {.pages = 4,
                .max_pages = 1,
                .page_tokens = 32,
                .page = 32,
                .key_value_head_num = 1,
                .lengths = {29, 11},
                .table = {8, 1}},
      .chosen = {.block = 16, .columns = 1, .count = 1, .topk = {-1, 0}}},
     // No sequences, of more heads than can be counted times k
     {.dtype = DType::kFloat16,
      .values = Values::kModerate,
      .seed = 4u,
      .batch = 0,
      .of = {.scale = 1,
             .heads = int64_t{1} << 58,
             .kv_heads = int64_t{1} << 58,
             .dim = 64,
             .value_dim = 64,
             .head_num = int64_t{1} << 58},
      .paged = {.pages = 0,
                .max_pages = 0,
                .page_tokens = 16,
                .page = 16,
                .key_value_head_num = int64_t{1} << 58,
                .lengths = {},
                .table = {}},
      .chosen = {.block = 16, .columns = 128, .count = 128, .topk = {}}}});

}  // namespace
}  // namespace nsa::cpu::fuzz
