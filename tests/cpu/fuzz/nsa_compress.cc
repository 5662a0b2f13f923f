// NsaCompress in the fuzzer (../fuzzer.h). The oracle is written from docs/operators.md.
#include "fuzzer.h"
#include "operators/nsa_compress/c_api.h"

namespace nsa::cpu::fuzz {
namespace {

struct CompressCase {
  DType dtype;
  Values values;
  uint64_t seed;
  int64_t block, stride, tokens, heads, dim;
  std::vector<int64_t> ends;  // actual_seq_len
  int64_t more_rows;          // that the output has than it must: 0 if legal
};

std::string Print(const CompressCase& c) {
  return Printer(c.dtype, c.values, c.seed)
      .Add("block", c.block)
      .Add("stride", c.stride)
      .Add("tokens", c.tokens)
      .Add("heads", c.heads)
      .Add("dim", c.dim)
      .Add("ends", c.ends)
      .Add("more_rows", c.more_rows)
      .text();
}

CompressCase Make(Random* random) {
  CompressCase c{};
  c.dtype = OneOf<DType>({DType::kFloat16, DType::kBFloat16}, random);
  c.values = static_cast<Values>(random->Between(0, kValueKinds - 1));
  c.block = 16 * (random->OneIn(2) ? random->Between(1, 8) : random->Between(1, 2));
  c.stride = 16 * random->Between(1, c.block / 16);
  c.heads = random->OneIn(8) ? random->Between(1, 128) : random->Between(1, 4);
  c.dim = 16 * (random->OneIn(4) ? random->Between(0, 16) : random->Between(1, 4));
  if (random->OneIn(12)) c.dim = 0;
  // A wide token is one of few.
  const int64_t most = 1 + 40'000 / (c.block * (c.heads * c.dim + 1));
  for (int64_t i = random->Between(1, 5); i > 0; --i) {
    const int64_t windows = random->Between(0, most);
    const int64_t tail = OneOf<int64_t>({0, 0, 1, c.stride - 1, c.stride / 2}, random);
    const int64_t begin = c.ends.empty() ? 0 : c.ends.back();
    const int64_t length = windows == 0 ? OneOf<int64_t>({0, 1, c.block - 1}, random)
                                        : c.block + (windows - 1) * c.stride + tail;
    c.ends.push_back(begin + (begin == 0 && length == 0 ? 1 : length));
  }
  c.tokens = c.ends.back();
  return c;
}

void Spoil(CompressCase* c, Random* random) {
  switch (random->Between(0, 9)) {
    case 0:
      return SpoilNumber(&c->block, random);
    case 1:
      return SpoilNumber(&c->stride, random);
    case 2:
      return SpoilNumber(&c->tokens, random);
    case 3:
      return SpoilNumber(&c->heads, random);
    case 4:
      return SpoilNumber(&c->dim, random);
    case 5:
      c->more_rows = OneOf<int64_t>({-1, 1, 2}, random);
      return;
    case 6:
      return c->ends.pop_back();
    case 7:
      c->ends.front() = 0;
      return;
    default:
      return SpoilList(&c->ends, c->tokens, random);
  }
}

// But for the rows of the output.
bool IsLegal(const CompressCase& c) {
  if (c.dim % 16 != 0 || c.dim > 256 || c.heads < 1 || c.heads > 128) return false;
  if (c.block % 16 != 0 || c.block < 16 || c.block > 128) return false;
  if (c.stride % 16 != 0 || c.stride < 16 || c.stride > c.block) return false;
  int64_t before = 1;
  for (const int64_t end : c.ends) {
    if (end < before) return false;
    before = end;
  }
  return !c.ends.empty() && c.ends.back() == c.tokens;
}

// The windows' first tokens. Of a spoilt case there may be any number: none of them counts.
std::vector<int64_t> Windows(const CompressCase& c) {
  std::vector<int64_t> starts;
  if (!IsLegal(c)) return starts;
  int64_t begin = 0;
  for (const int64_t end : c.ends) {
    for (int64_t start = begin; start + c.block <= end; start += c.stride) starts.push_back(start);
    begin = end;
  }
  return starts;
}

std::vector<uint16_t> Oracle(const CompressCase& c, const std::vector<float>& input,
                             const std::vector<float>& weight) {
  std::vector<uint16_t> output;
  for (const int64_t start : Windows(c)) {
    for (int64_t n = 0; n < c.heads; ++n) {
      for (int64_t d = 0; d < c.dim; ++d) {
        float sum = 0;
        for (int64_t j = 0; j < c.block; ++j) {
          const auto x = static_cast<size_t>(((start + j) * c.heads + n) * c.dim + d);
          const auto w = static_cast<size_t>(j * c.heads + n);
          const float product = input[x] * weight[w];
          sum = sum + product;
        }
        output.push_back(NearestTo(c.dtype, sum));
      }
    }
  }
  return output;
}

void Run(const CompressCase& c, Runner* runner) {
  const Dims input_dims{c.tokens, c.heads, c.dim}, weight_dims{Clamped(c.block), c.heads};
  const int64_t windows = static_cast<int64_t>(Windows(c).size());
  // A spoilt case has room for some rows: what it writes before it refuses is seen.
  const int64_t rows = std::max<int64_t>(0, (IsLegal(c) ? windows : 3) + c.more_rows);
  const Dims output_dims{rows, c.heads, c.dim};
  if (!Possible(input_dims) || !Possible(weight_dims) || !Possible(output_dims)) return;

  Random random(c.seed);
  std::vector<uint16_t> inputs(static_cast<size_t>(Elements(input_dims)));
  std::vector<uint16_t> weights(static_cast<size_t>(Elements(weight_dims)));
  Generator generator(c.dtype, c.values, &random);
  generator.Weight(weights.data(), Clamped(c.block), c.heads);
  if (c.dim > 0) generator.Input(inputs.data(), c.tokens, c.heads, c.dim);
  const std::vector<uint16_t> want =
      Oracle(c, ValuesOf(c.dtype, inputs), ValuesOf(c.dtype, weights));

  Memory input("input", input_dims, inputs, random.Between(0, 15));
  Memory weight("weight", weight_dims, weights, random.Between(0, 15));
  const auto count = static_cast<int64_t>(c.ends.size());
  Memory ends("actual_seq_len", {count}, c.ends, random.Between(0, 1));
  Memory output("output", output_dims, RandomBits(Elements(output_dims), &random),
                random.Between(0, 31));
  const NsaArray x = input.array(), w = weight.array(), y = output.array();
  Node node;
  if (!IsLegal(c) || rows == windows) {
    node = {"NsaCompress",
            c.dtype,
            {&input, &weight, &ends},
            {{"compress_block_size", c.block}, {"compress_stride", c.stride}}};
  }
  runner->Run({{&input, &weight, &ends},
               {&ends},
               {&output},
               IsLegal(c) && rows == windows,
               /*same_bits=*/true,
               [&](int64_t threads, char* error, int64_t size) {
                 return nsa_compress(static_cast<int>(c.dtype), &x, &w, c.block, c.stride,
                                     ends.as<int64_t>(), count, &y, threads, error, size);
               },
               [&](bool exact) {
                 const auto* got = output.as<uint16_t>();
                 return exact ? Difference(c.dtype, "output", got, want, output_dims) : "";
               },
               node});
}

const Register<CompressCase> part("nsa_compress", Make, Spoil, Print, Run, {});

}  // namespace
}  // namespace nsa::cpu::fuzz
