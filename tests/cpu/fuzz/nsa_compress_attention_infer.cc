// NsaCompressAttentionInfer in the fuzzer (../fuzzer.h).
#include "attention_case.h"
#include "operators/nsa_compress_attention_infer/c_api.h"

namespace nsa::cpu::fuzz {
namespace {

struct CompressDecodeCase {
  DType dtype;
  Values values;
  uint64_t seed;
  int64_t batch;
  Heads of;
  Choice choice;
  Pages paged;
};

std::string Print(const CompressDecodeCase& c) {
  return Printer(c.dtype, c.values, c.seed)
      .Add("batch", c.batch)
      .Add("of", Print(c.of))
      .Add("choice", Print(c.choice))
      .Add("paged", Print(c.paged))
      .text();
}

// The pages of sequence `b` that hold tokens.
std::vector<bool> PagesRead(const CompressDecodeCase& c, int64_t b) {
  std::vector<bool> read(static_cast<size_t>(c.paged.max_pages));
  const int64_t used = Ceil(c.paged.lengths[static_cast<size_t>(b)], c.paged.page);
  std::fill_n(read.begin(), used, true);
  return read;
}

CompressDecodeCase Make(Random* random) {
  CompressDecodeCase c{};
  c.dtype = AnyType(random);
  c.values = AnyValues(random);
  c.batch = random->Between(0, 4);
  c.of = MakeHeads(random);
  c.choice = MakeChoice(random);
  c.paged = MakePages(c.batch, c.of.kv_heads, random);
  for (int64_t b = 0; b < c.batch; ++b) FillTable(PagesRead(c, b), &c.paged, random);
  return c;
}

void Spoil(CompressDecodeCase* c, Random* random) {
  if (random->OneIn(6)) return Spoil(&c->of, random);
  if (random->OneIn(6)) return Spoil(&c->choice, random);
  Spoil(&c->paged, random);
}

bool IsLegal(const CompressDecodeCase& c) {
  if (!IsLegal(c.of) || !IsLegal(c.choice)) return false;
  if (!HasLegalLengths(c.paged, c.batch, c.of.kv_heads)) return false;
  for (int64_t b = 0; b < c.batch; ++b) {
    if (!HasLegalTable(c.paged, b, PagesRead(c, b))) return false;
  }
  return true;
}

// Of a legal case.
Chosen Oracle(const CompressDecodeCase& c, const Arrays& arrays) {
  Chosen want;
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t length = c.paged.lengths[static_cast<size_t>(b)];
    // A sequence shorter than a window still selects its only block.
    const int64_t all = (length - 1) * c.choice.stride + c.choice.window;
    const int64_t blocks = length == 0 ? 1 : Ceil(all, c.choice.block);
    std::vector<bool> forced;
    for (int64_t s = 0; s < blocks; ++s) forced.push_back(s == 0 || s >= blocks - 2);
    for (int64_t g = 0; g < c.of.kv_heads; ++g) {
      std::vector<Token> tokens;
      for (int64_t j = 0; j < length; ++j) {
        tokens.push_back(arrays.At(c.of, c.paged.Place(b, j), g, false));
      }
      const float* query = arrays.queries.values.data() + b * c.of.heads * c.of.dim;
      want.Add(c.choice, Attend(c.of, query, g, tokens, &want.output), forced);
    }
  }
  return want;
}

void Run(const CompressDecodeCase& c, Runner* runner) {
  const Dims key_dims{c.paged.pages, c.paged.page_tokens, c.of.kv_heads};
  const Dims topk_dims{c.batch, c.of.kv_heads, Clamped(c.choice.count)};
  if (!Arrays::ArePossible(c.of, c.batch, key_dims) || !Possible(topk_dims)) return;
  Random random(c.seed);
  Arrays arrays(c.dtype, c.values, c.of, c.batch, key_dims, &random);
  const bool legal = IsLegal(c);
  Chosen want;
  if (legal) want = Oracle(c, arrays);

  Memory table("block_table", {c.batch, c.paged.max_pages}, c.paged.table, random.Between(0, 1));
  const auto count = static_cast<int64_t>(c.paged.lengths.size());
  Memory lengths("actual_cmp_seq_kvlen", {count}, c.paged.lengths, random.Between(0, 1));
  Memory topk = MakeTopk(topk_dims, &random);
  const NsaArray q = arrays.query.array(), k = arrays.key.array(), v = arrays.value.array(),
                 t = table.array(), y = arrays.output.array(), i = topk.array();
  const auto call = [&](int64_t threads, char* error, int64_t size) {
    return nsa_compress_attention_infer(
        static_cast<int>(c.dtype), &q, &k, &v, c.of.scale, c.of.head_num,
        c.paged.key_value_head_num, c.choice.block, c.choice.count, c.paged.page, c.choice.window,
        c.choice.stride, &t, lengths.as<int64_t>(), count, &y, &i, threads, error, size);
  };
  const Node node{"NsaCompressAttentionInfer",
                  c.dtype,
                  {&arrays.query, &arrays.key, &arrays.value, &lengths, &table},
                  {{"scale_value", c.of.scale},
                   {"head_num", c.of.head_num},
                   {"key_value_head_num", c.paged.key_value_head_num},
                   {"select_block_size", c.choice.block},
                   {"select_block_count", c.choice.count},
                   {"page_block_size", c.paged.page},
                   {"compress_block_size", c.choice.window},
                   {"compress_stride", c.choice.stride}}};
  runner->Run({{&arrays.query, &arrays.key, &arrays.value, &table, &lengths},
               {&table, &lengths},
               {&arrays.output, &topk},
               legal,
               /*same_bits=*/false,
               call,
               [&](bool exact) {
                 return exact ? want.Wrong(c.dtype, &arrays.output, &topk, c.choice.count) : "";
               },
               node});
}

const Register<CompressDecodeCase> part("nsa_compress_attention_infer", Make, Spoil, Print, Run,
                                        {});

}  // namespace
}  // namespace nsa::cpu::fuzz
