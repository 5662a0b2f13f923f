// NsaSelectedAttention in the fuzzer (../fuzzer.h).
#include "attention_case.h"
#include "operators/nsa_selected_attention/c_api.h"

namespace nsa::cpu::fuzz {
namespace {

struct SelectedCase {
  DType dtype;
  Values values;
  uint64_t seed;
  Heads of;
  Sequences in;
  Blocks chosen;
  int64_t causal;
};

std::string Print(const SelectedCase& c) {
  return Printer(c.dtype, c.values, c.seed)
      .Add("of", Print(c.of))
      .Add("in", Print(c.in))
      .Add("chosen", Print(c.chosen))
      .Add("causal", c.causal)
      .text();
}

SelectedCase Make(Random* random) {
  SelectedCase c{};
  c.dtype = AnyType(random);
  c.values = AnyValues(random);
  c.of = MakeHeads(random);
  c.chosen.block = Multiple(128, random);
  c.chosen.columns = c.chosen.count = random->OneIn(3) ? 1 : random->Between(1, 5);
  c.causal = random->Between(0, 1);
  const bool whole = random->OneIn(3);
  c.in = MakeSequences(4 * c.chosen.block, whole ? c.chosen.block : 1, random);
  for (size_t b = 0; b < c.in.count(); ++b) {
    AddRows(Step(c.in.query_ends, b), c.of.kv_heads, Step(c.in.key_ends, b), whole, &c.chosen,
            random);
  }
  return c;
}

// How many blocks element `i` of topk_indices has to choose from.
int64_t BlocksOf(const SelectedCase& c, size_t i) {
  const int64_t row = static_cast<int64_t>(i) / (c.of.kv_heads * c.chosen.columns);
  const auto of = std::upper_bound(c.in.query_ends.begin(), c.in.query_ends.end(), row);
  const auto b = static_cast<size_t>(of - c.in.query_ends.begin());
  return Ceil(Step(c.in.key_ends, b), c.chosen.block);
}

void Spoil(SelectedCase* c, Random* random) {
  if (random->OneIn(6)) return Spoil(&c->of, random);
  if (random->OneIn(3)) return Spoil(&c->in, random);
  if (random->OneIn(12)) return SpoilNumber(&c->causal, random);
  Spoil(&c->chosen, [&](size_t i) { return BlocksOf(*c, i); }, random);
}

bool IsLegal(const SelectedCase& c) {
  if (!IsLegal(c.of) || !IsLegal(c.in) || !IsLegal(c.chosen)) return false;
  if (c.causal < 0 || c.causal > 1) return false;
  for (size_t i = 0; i < c.chosen.topk.size(); ++i) {
    if (c.chosen.topk[i] < -1 || c.chosen.topk[i] >= BlocksOf(c, i)) return false;
  }
  return true;
}

// attention_out of a legal case.
std::vector<Bounded> Oracle(const SelectedCase& c, const Arrays& arrays) {
  std::vector<Bounded> output;
  for (size_t b = 0; b < c.in.count(); ++b) {
    const int64_t begin = Begin(c.in.query_ends, b), first = Begin(c.in.key_ends, b);
    for (int64_t t = begin; t < c.in.query_ends[b]; ++t) {
      for (int64_t g = 0; g < c.of.kv_heads; ++g) {
        std::vector<Token> tokens;
        ForChosen(c.chosen, t * c.of.kv_heads + g, Step(c.in.key_ends, b), [&](int64_t p) {
          tokens.push_back(arrays.At(c.of, first + p, g, c.causal == 1 && p > t - begin));
        });
        Attend(c.of, arrays.queries.values.data() + t * c.of.heads * c.of.dim, g, tokens, &output);
      }
    }
  }
  return output;
}

void Run(const SelectedCase& c, Runner* runner) {
  const Dims key_dims{c.in.key_tokens(), c.of.kv_heads};
  if (!Arrays::ArePossible(c.of, c.in.tokens, key_dims)) return;
  Random random(c.seed);
  Arrays arrays(c.dtype, c.values, c.of, c.in.tokens, key_dims, &random);
  const bool legal = IsLegal(c);
  std::vector<Bounded> want;
  if (legal) want = Oracle(c, arrays);

  Memory topk("topk_indices", {c.in.tokens, c.of.kv_heads, c.chosen.columns}, c.chosen.topk,
              random.Between(0, 1));
  const auto queries = static_cast<int64_t>(c.in.query_ends.size());
  const auto keys = static_cast<int64_t>(c.in.key_ends.size());
  Memory query_ends("actual_seq_qlen", {queries}, c.in.query_ends, random.Between(0, 1));
  Memory key_ends("actual_seq_kvlen", {keys}, c.in.key_ends, random.Between(0, 1));
  const NsaArray q = arrays.query.array(), k = arrays.key.array(), v = arrays.value.array(),
                 i = topk.array(), y = arrays.output.array();
  const auto call = [&](int64_t threads, char* error, int64_t size) {
    return nsa_selected_attention(static_cast<int>(c.dtype), &q, &k, &v, &i, c.of.scale,
                                  c.of.head_num, c.chosen.block, c.chosen.count, c.causal,
                                  query_ends.as<int64_t>(), queries, key_ends.as<int64_t>(), keys,
                                  &y, threads, error, size);
  };
  const Node node{"NsaSelectedAttention",
                  c.dtype,
                  {&arrays.query, &arrays.key, &arrays.value, &topk, &query_ends, &key_ends},
                  {{"scale_value", c.of.scale},
                   {"head_num", c.of.head_num},
                   {"select_block_size", c.chosen.block},
                   {"select_block_count", c.chosen.count},
                   {"causal", c.causal}}};
  runner->Run({{&arrays.query, &arrays.key, &arrays.value, &topk, &query_ends, &key_ends},
               {&topk, &query_ends, &key_ends},
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

const Register<SelectedCase> part("nsa_selected_attention", Make, Spoil, Print, Run, {});

}  // namespace
}  // namespace nsa::cpu::fuzz
