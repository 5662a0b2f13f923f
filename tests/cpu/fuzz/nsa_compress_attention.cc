// NsaCompressAttention in the fuzzer (../fuzzer.h).
#include "attention_case.h"
#include "operators/nsa_compress_attention/c_api.h"

namespace nsa::cpu::fuzz {
namespace {

struct CompressAttentionCase {
  DType dtype;
  Values values;
  uint64_t seed;
  Heads of;
  Choice choice;
  Sequences in;
  std::vector<int64_t> block_ends;
  int64_t topk_rows, topk_columns, seen_rows, seen_columns;  // of the masks; rows -1: there is none
};

std::string Print(const CompressAttentionCase& c) {
  return Printer(c.dtype, c.values, c.seed)
      .Add("of", Print(c.of))
      .Add("choice", Print(c.choice))
      .Add("in", Print(c.in))
      .Add("block_ends", c.block_ends)
      .Add("topk_rows", c.topk_rows)
      .Add("topk_columns", c.topk_columns)
      .Add("seen_rows", c.seen_rows)
      .Add("seen_columns", c.seen_columns)
      .text();
}

int64_t BlocksOf(const CompressAttentionCase& c, size_t b) {
  return Ceil(Step(c.in.key_ends, b) * c.choice.stride, c.choice.block);
}

CompressAttentionCase Make(Random* random) {
  CompressAttentionCase c{};
  c.dtype = AnyType(random);
  c.values = AnyValues(random);
  c.of = MakeHeads(random);
  c.choice = MakeChoice(random);
  c.in = MakeSequences(random->OneIn(3) ? 150 : 30, random->OneIn(3) ? 2 : 1, random);
  for (size_t b = 0; b < c.in.count(); ++b) {
    c.block_ends.push_back(Begin(c.block_ends, b) + BlocksOf(c, b));
  }
  const auto rows = [&] {
    return random->OneIn(2) ? -1 : Longest(c.in.query_ends) + random->Between(0, 2);
  };
  c.topk_rows = rows();
  c.seen_rows = rows();
  c.topk_columns = Longest(c.block_ends) + random->Between(0, 2);
  c.seen_columns = Longest(c.in.key_ends) + random->Between(0, 2);
  return c;
}

void Spoil(CompressAttentionCase* c, Random* random) {
  switch (random->Between(0, 8)) {
    case 0:
      return Spoil(&c->of, random);
    case 1:
      return Spoil(&c->choice, random);
    case 2:
    case 3:
      return Spoil(&c->in, random);
    case 4:
    case 5:
      return SpoilList(&c->block_ends, c->block_ends.back(), random);
    case 6:
      return c->block_ends.pop_back();
    case 7:  // one too few, or any number
      c->topk_rows = Longest(c->in.query_ends) - random->Between(0, 1);
      c->seen_rows = random->Between(0, Longest(c->in.query_ends));
      return;
    default:
      c->topk_columns = Longest(c->block_ends) - random->Between(0, 1);
      c->seen_columns = random->Between(std::max<int64_t>(0, c->seen_columns - 3), c->seen_columns);
  }
}

bool IsLegal(const CompressAttentionCase& c) {
  if (!IsLegal(c.of) || !IsLegal(c.choice) || !IsLegal(c.in)) return false;
  if (c.block_ends.size() != c.in.count()) return false;
  for (size_t b = 0; b < c.in.count(); ++b) {
    if (Step(c.block_ends, b) != BlocksOf(c, b)) return false;
  }
  const int64_t rows = Longest(c.in.query_ends);
  return (c.topk_rows < 0 || (c.topk_rows >= rows && c.topk_columns >= Longest(c.block_ends))) &&
         (c.seen_rows < 0 || (c.seen_rows >= rows && c.seen_columns >= Longest(c.in.key_ends)));
}

// A mask of bools, which hold any byte.
struct Mask {
  Mask(const char* name, int64_t mask_rows, int64_t mask_columns, Random* random)
      : rows(mask_rows),
        columns(mask_columns),
        bytes(static_cast<size_t>(std::max<int64_t>(rows, 0) * std::max<int64_t>(columns, 0))),
        memory(Filled(name, random)) {}

  bool At(int64_t row, int64_t column) const {
    return rows >= 0 && bytes[static_cast<size_t>(row * columns + column)] != 0;
  }
  Memory* IfThere() { return rows < 0 ? nullptr : &memory; }

  int64_t rows, columns;
  std::vector<uint8_t> bytes;
  Memory memory;

 private:
  Memory Filled(const char* name, Random* random) {
    const int64_t rare = OneOf<int64_t>({1, 2, 6}, random);
    for (uint8_t& one : bytes) one = static_cast<uint8_t>(random->OneIn(rare) ? random->Next() : 0);
    return {name, {rows, columns}, bytes, random->Between(0, 3)};
  }
};

// Of a legal case.
Chosen Oracle(const CompressAttentionCase& c, const Arrays& arrays, const Mask& topk_mask,
              const Mask& seen_mask) {
  Chosen want;
  for (size_t b = 0; b < c.in.count(); ++b) {
    const int64_t begin = Begin(c.in.query_ends, b), first = Begin(c.in.key_ends, b);
    for (int64_t t = begin; t < c.in.query_ends[b]; ++t) {
      for (int64_t g = 0; g < c.of.kv_heads; ++g) {
        std::vector<Token> tokens;
        for (int64_t j = 0; j < Step(c.in.key_ends, b); ++j) {
          tokens.push_back(arrays.At(c.of, first + j, g, seen_mask.At(t - begin, j)));
        }
        const float* query = arrays.queries.values.data() + t * c.of.heads * c.of.dim;
        std::vector<bool> forced;
        for (int64_t s = 0; s < Step(c.block_ends, b); ++s) {
          forced.push_back(topk_mask.At(t - begin, s));
        }
        want.Add(c.choice, Attend(c.of, query, g, tokens, &want.output), forced);
      }
    }
  }
  return want;
}

void Run(const CompressAttentionCase& c, Runner* runner) {
  const Dims key_dims{c.in.key_tokens(), c.of.kv_heads};
  const Dims topk_dims{c.in.tokens, c.of.kv_heads, Clamped(c.choice.count)};
  if (!Arrays::ArePossible(c.of, c.in.tokens, key_dims) || !Possible(topk_dims)) return;
  if (c.topk_columns < 0 || c.seen_columns < 0) return;
  Random random(c.seed);
  Arrays arrays(c.dtype, c.values, c.of, c.in.tokens, key_dims, &random);
  Mask topk_mask("topk_mask", c.topk_rows, c.topk_columns, &random);
  Mask seen_mask("atten_mask", c.seen_rows, c.seen_columns, &random);
  const bool legal = IsLegal(c);
  Chosen want;
  if (legal) want = Oracle(c, arrays, topk_mask, seen_mask);

  const auto ends = [&](const char* name, const std::vector<int64_t>& values) {
    return Memory(name, {static_cast<int64_t>(values.size())}, values, random.Between(0, 1));
  };
  Memory query_ends = ends("actual_seq_qlen", c.in.query_ends);
  Memory key_ends = ends("actual_cmp_seq_kvlen", c.in.key_ends);
  Memory block_ends = ends("actual_sel_seq_kvlen", c.block_ends);
  Memory topk = MakeTopk(topk_dims, &random);
  const NsaArray q = arrays.query.array(), k = arrays.key.array(), v = arrays.value.array(),
                 tm = topk_mask.memory.array(), sm = seen_mask.memory.array(),
                 y = arrays.output.array(), i = topk.array();
  const auto call = [&](int64_t threads, char* error, int64_t size) {
    return nsa_compress_attention(
        static_cast<int>(c.dtype), &q, &k, &v, c.of.scale, c.of.head_num, c.choice.window,
        c.choice.stride, c.choice.block, c.choice.count, c.topk_rows < 0 ? nullptr : &tm,
        c.seen_rows < 0 ? nullptr : &sm, query_ends.as<int64_t>(),
        static_cast<int64_t>(c.in.query_ends.size()), key_ends.as<int64_t>(),
        static_cast<int64_t>(c.in.key_ends.size()), block_ends.as<int64_t>(),
        static_cast<int64_t>(c.block_ends.size()), &y, &i, threads, error, size);
  };
  const Node node{"NsaCompressAttention",
                  c.dtype,
                  {&arrays.query, &arrays.key, &arrays.value, &query_ends, &key_ends, &block_ends,
                   seen_mask.IfThere(), topk_mask.IfThere()},
                  {{"scale_value", c.of.scale},
                   {"head_num", c.of.head_num},
                   {"compress_block_size", c.choice.window},
                   {"compress_stride", c.choice.stride},
                   {"select_block_size", c.choice.block},
                   {"select_block_count", c.choice.count}}};
  runner->Run({{&arrays.query, &arrays.key, &arrays.value, &topk_mask.memory, &seen_mask.memory,
                &query_ends, &key_ends, &block_ends},
               {&query_ends, &key_ends, &block_ends},
               {&arrays.output, &topk},
               legal,
               /*same_bits=*/false,
               call,
               [&](bool exact) {
                 return exact ? want.Wrong(c.dtype, &arrays.output, &topk, c.choice.count) : "";
               },
               node});
}

const Register<CompressAttentionCase> part("nsa_compress_attention", Make, Spoil, Print, Run, {});

}  // namespace
}  // namespace nsa::cpu::fuzz
