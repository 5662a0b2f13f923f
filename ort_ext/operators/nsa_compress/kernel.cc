// The CPU kernel of NsaCompress over Google Highway, compiled once per instruction set.
//
// An output row is a weighted sum of `block` tokens, and a token belongs to ceil(block / stride)
// rows, so reading a token once is the least that memory has to do. Per element of 2 bytes that is
// one conversion and ceil(block / stride) multiply-adds in float32: 2 at 32/16, which a core does
// at several times the speed of memory, 8 at 128/16, which is about as much as it can. Hence:
//
//   The kernel walks a run's tokens in the order of memory, in chunks of `stride` tokens. A window
//   is as old as the chunks since it began: 0 to ages - 1. All that cover a chunk take it in one
//   pass, so that each element is read and converted once. A step keeps the sums of these windows
//   for a few neighbouring vectors in registers and takes every token of the chunk into them;
//   between chunks the sums wait in the first-level cache. The pass that ends a chunk stores each
//   sum one place further, as that of a window one chunk older; the oldest goes to the output
//   instead.
//
//   The steps are in cpu/window_step-inl.h. While one works it fetches what comes later, in the
//   order of memory. A core that does so in software alone has too few requests under way to read
//   at the speed of memory; the rest must come from its own prefetching, which follows tokens that
//   are used soon after they were fetched and nearly in order. So a chunk is taken in parts of four
//   tokens (short steps), and what is fetched is only some 8 KiB ahead. With more than four windows
//   per token, or tokens so short that a chunk is a few lines, computing is the limit: then a part
//   is a chunk, and the sums stay in registers for longer.
//
// The order of additions, j = 0, 1, 2, ..., is the contract's and the same in every instruction
// set.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "operators/nsa_compress/kernel.cc"
#include "operators/nsa_compress/kernel.h"

#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cpu/float16.h"
#include "cpu/float_environment.h"
#include "cpu/scratch.h"
#include "cpu/targets.h"
#include "cpu/window_step-inl.h"
#include "cpu/window_step.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace nsa::compress::HWY_NAMESPACE {

using namespace cpu::HWY_NAMESPACE;

// The range of some float patterns' exponents, zeros left out. bfloat16 has float32's exponent; the
// product of two such numbers has 16 significant bits and is exact in float32 unless it leaves its
// range, and where it is exact, one fused step is the same as multiply, then add.
struct Exponents {
  int least = 255;
  int greatest = 0;

  // At least 2^-126: 2^(e - 127) is the least number of exponent e. Below 2^128: 2^(e - 126) is
  // above the greatest. Infinities and NaNs, e = 255, count as too great.
  static bool ProductsAreExact(const Exponents& a, const Exponents& b) {
    return a.least + b.least >= 128 && a.greatest + b.greatest <= 380 && a.greatest < 255 &&
           b.greatest < 255;
  }
};

// Of bfloat16 patterns: `rows` of `size`, a multiple of 16, `pitch` apart.
HWY_INLINE Exponents ExponentsOf(const uint16_t* from, size_t pitch, size_t rows, size_t size) {
  const hn::CappedTag<uint16_t, 16> du;
  const auto magnitude = hn::Set(du, 0x7FFF), one = hn::Set(du, 1);
  auto greatest = hn::Zero(du), least = hn::Set(du, 0xFFFF);
  for (size_t row = 0; row < rows; ++row, from += pitch) {
    for (size_t i = 0; i < size; i += hn::Lanes(du)) {
      const auto v = hn::And(hn::LoadU(du, from + i), magnitude);
      greatest = hn::Max(greatest, v);
      least = hn::Min(least, hn::Sub(v, one));  // makes zero the greatest
    }
  }
  const int exponent_bits = 7;
  return {(hn::ReduceMin(du, least) + 1) >> exponent_bits,
          hn::ReduceMax(du, greatest) >> exponent_bits};
}

// More than this ahead, the second-level cache could lose what was fetched before its turn comes.
constexpr size_t kMostAhead = (size_t{128} << 10) / sizeof(uint16_t);

// An output of so many bytes is written past the caches: whoever reads it next would hardly find
// its beginning there, and a cache reads every line from memory that is written to.
constexpr int64_t kStreamedBytes = int64_t{2} << 20;

// For fewer windows, looking at the exponents costs more than a fused step saves; and short steps
// never look.
constexpr size_t kWindowsWorthLooking = 3;

// Elements of a token from which on short steps pay.
constexpr size_t kShortStepPitch = 256 / sizeof(uint16_t);

// How far ahead of its tokens a short step fetches, in elements: 8 KiB, and at least 3 KiB beyond
// the part at work. Found by trying on a Zen 4: half or twice of it costs a tenth of the speed.
constexpr size_t kShortStepAhead = (size_t{8} << 10) / sizeof(uint16_t);
constexpr size_t kBeyondThePart = (size_t{3} << 10) / sizeof(uint16_t);

// And how far ahead pages are touched, so that their addresses are known when they are fetched.
constexpr size_t kPagesAhead = (size_t{32} << 10) / sizeof(uint16_t);

static_assert(spec::nsa_compress::kLimits.max_block <= cpu::kMostWindows * spec::kAlignment);

// Walk for 1 to kMostWindows windows.
template <class T>
HWY_INLINE const decltype(&Walk<T, 1>)* Passes() {
  static constexpr decltype(&Walk<T, 1>) passes[] = {Walk<T, 1>, Walk<T, 2>, Walk<T, 3>,
                                                     Walk<T, 4>, Walk<T, 5>, Walk<T, 6>,
                                                     Walk<T, 7>, Walk<T, 8>};
  static_assert(sizeof passes / sizeof *passes == cpu::kMostWindows);
  return passes;
}

// The same in short steps.
template <class T>
HWY_INLINE const decltype(&Walk<T, 1>)* ShortPasses() {
  static constexpr decltype(&Walk<T, 1>) passes[] = {ShortWalk<T, 1>, ShortWalk<T, 2>,
                                                     ShortWalk<T, 3>, ShortWalk<T, 4>};
  static_assert(sizeof passes / sizeof *passes == kMostShortWindows);
  return passes;
}

template <class T>
class Prefill {
 public:
  Prefill(const KernelData& data, float* scratch)
      : input_(data.input),
        output_(data.output),
        heads_(static_cast<size_t>(data.heads)),
        dim_(static_cast<size_t>(data.dim)),
        stride_(static_cast<size_t>(data.stride)),
        ages_(OverlappingWindows(data)),
        last_tokens_(static_cast<size_t>(data.block) - (ages_ - 1) * stride_),
        pitch_(heads_ * dim_),
        short_(ShortStepsPay()),
        part_tokens_(short_ ? kShortTokens : PartTokens()),
        tile_heads_(
            short_ ? heads_
                   : std::min(heads_, std::max<size_t>(1, kMostAhead / (part_tokens_ * dim_)))),
        streams_(Streams(data)),
        sums_(cpu::AlignedToLine(scratch)),
        weights_(sums_ + pitch_ * ages_) {
    for (size_t j = 0; j < static_cast<size_t>(data.block); ++j) {
      for (size_t n = 0; n < heads_; ++n) {
        weights_[(j % stride_ * heads_ + n) * ages_ + j / stride_] =
            T::ToFloat(data.weight[j * heads_ + n]);
        const int exponent = data.weight[j * heads_ + n] >> 7 & 255;
        if (data.weight[j * heads_ + n] << 1 & 0xFFFF) {
          weight_exponents_.least = std::min(weight_exponents_.least, exponent);
        }
        weight_exponents_.greatest = std::max(weight_exponents_.greatest, exponent);
      }
    }
  }

  bool streams() const { return streams_; }

  // `rows` windows from token `token` on, into output rows from `row` on. What will be asked for
  // next begins at `next`.
  void Run(size_t token, size_t row, size_t rows, const uint16_t* next) {
    const size_t chunks = rows + ages_ - 1;
    end_ = input_ + (token + (rows - 1) * stride_ + (ages_ - 1) * stride_ + last_tokens_) * pitch_;
    const uint16_t* chunk = input_ + token * pitch_;
    for (size_t c = 0; c < chunks; ++c) {
      const uint16_t* after = c + 1 < chunks ? chunk + stride_ * pitch_ : next;
      const size_t youngest = c < rows ? 0 : c - rows + 1;
      const size_t oldest = std::min(c, ages_ - 1);
      Chunk(chunk, youngest, oldest, output_ + (row + c - oldest) * pitch_, after);
      chunk = after;
    }
  }

 private:
  static bool Streams(const KernelData& data) {
    const RowRun& last = data.runs[data.run_count - 1];
    const int64_t bytes =
        (last.first_row + last.rows) * data.heads * data.dim * int64_t{sizeof(uint16_t)};
    return bytes >= kStreamedBytes;
  }

  // Not where a head is a single vector: each would have weights of its own to load.
  bool ShortStepsPay() const {
    return ages_ <= kMostShortWindows && pitch_ >= kShortStepPitch && dim_ >= 2 * hn::Lanes(DF());
  }

  // The most tokens of a chunk, halved as often as it takes, that are not too much to fetch ahead.
  size_t PartTokens() const {
    size_t tokens = stride_;
    while (tokens % 32 == 0 && tokens * pitch_ > kMostAhead) tokens /= 2;
    return tokens;
  }

  // One chunk, for the windows that began `youngest` to `oldest` chunks ago. What of a window's
  // last chunk is not its own may not be memory at all, if no younger window reads it.
  void Chunk(const uint16_t* chunk, size_t youngest, size_t oldest, uint16_t* done,
             const uint16_t* next) {
    for (size_t begin = 0, end = 0; begin < stride_; begin = end) {
      end = std::min(begin + part_tokens_, stride_);
      size_t windows = oldest - youngest + 1;
      bool closes = false;
      if (oldest + 1 == ages_) {
        if (begin < last_tokens_) {
          end = std::min(end, last_tokens_);
          closes = end == last_tokens_;
        } else if (--windows == 0) {
          return;
        }
      }
      const uint16_t* token = chunk + begin * pitch_;
      Part(token, begin, end, youngest, windows, closes ? done : nullptr,
           end < stride_ ? chunk + end * pitch_ : next);
    }
  }

  void Part(const uint16_t* token, size_t begin, size_t end, size_t youngest, size_t windows,
            uint16_t* output, const uint16_t* next) {
    const size_t lanes = hn::Lanes(DF());
    const uint16_t* const far = token + std::min(kPagesAhead, static_cast<size_t>(end_ - token));
    const size_t part = (end - begin) * pitch_;
    TouchPages(far, far + std::min(part, static_cast<size_t>(end_ - far)));
    for (size_t n = 0; n < heads_; n += tile_heads_) {
      const bool last = n + tile_heads_ >= heads_;
      float* const sums = sums_ + n * dim_ * ages_ + youngest * lanes;
      Tile tile;
      tile.token = token + n * dim_;
      tile.pitch = pitch_;
      tile.tokens = end - begin;
      tile.weight = weights_ + (begin * heads_ + n) * ages_ + youngest;
      tile.weight_pitch = heads_ * ages_;
      tile.head_pitch = ages_;
      tile.ahead = last ? next : tile.token + tile_heads_ * dim_;
      tile.ahead_in_order = tile_heads_ == heads_;
      if (short_) tile.ahead += FartherAhead();
      tile.sums = sums;
      tile.results = end == stride_ ? sums + lanes : sums;  // with the next chunk all are older
      tile.sums_pitch = ages_ * lanes;
      tile.begins = begin == 0 && youngest == 0;
      tile.output = output == nullptr ? nullptr : output + n * dim_;
      tile.streams = streams_;
      WalkAll(tile, windows, last ? heads_ - n : tile_heads_);
    }
  }

  // What a short step fetches.
  size_t FartherAhead() const {
    const size_t part = part_tokens_ * pitch_;
    return std::max(kBeyondThePart, kShortStepAhead - std::min(part, kShortStepAhead));
  }

  void WalkAll(Tile& tile, size_t windows, size_t heads) const {
    const size_t vectors = dim_ / hn::Lanes(DF());
    if (short_) {
      ShortPasses<T>()[windows - 1](tile, heads, vectors);
      return;
    }
    if constexpr (std::is_same_v<T, SimdBFloat16>) {
      if (windows >= kWindowsWorthLooking) {
        const Exponents exponents = ExponentsOf(tile.token, pitch_, tile.tokens, heads * dim_);
        if (Exponents::ProductsAreExact(exponents, weight_exponents_)) {
          Passes<SimdBFloat16Exact>()[windows - 1](tile, heads, vectors);
          return;
        }
      }
    }
    Passes<T>()[windows - 1](tile, heads, vectors);
  }

  const uint16_t* input_;
  const uint16_t* end_ = nullptr;  // of the tokens that Run reads
  uint16_t* output_;
  size_t heads_, dim_, stride_;
  size_t ages_;         // windows that cover a chunk
  size_t last_tokens_;  // of a window's last chunk
  size_t pitch_;        // elements of a token
  bool short_;          // parts are short steps
  size_t part_tokens_;  // of a chunk that are taken at once
  size_t tile_heads_;   // and heads of them
  bool streams_;
  Exponents weight_exponents_;
  float* sums_;     // [heads * dim / lanes, ages, lanes]
  float* weights_;  // [stride, heads, ages]
};

template <class T>
void Compress(const KernelData& data, int64_t first, int64_t last, float* scratch) {
  const cpu::FloatEnvironment environment;
  Prefill<T> prefill(data, scratch);
  const int64_t pitch = data.heads * data.dim;
  for (int64_t i = 0; i < data.run_count; ++i) {
    const RowRun& run = data.runs[i];
    const int64_t begin = std::max(first, run.first_row);
    const int64_t end = std::min(last, run.first_row + run.rows);
    if (begin >= end) continue;
    const int64_t token = run.first_token + (begin - run.first_row) * data.stride;
    const int64_t next = i + 1 < data.run_count ? data.runs[i + 1].first_token : token;
    prefill.Run(static_cast<size_t>(token), static_cast<size_t>(begin),
                static_cast<size_t>(end - begin), data.input + next * pitch);
  }
  if (prefill.streams()) hwy::FlushStream();
}

const Kernel* VectorKernels() {
  static constexpr Kernel kernels[] = {Compress<SimdFloat16>, Compress<SimdBFloat16>};
  return kernels;
}

}  // namespace nsa::compress::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsa::compress {
namespace scalar {
namespace {

template <class T>
void Compress(const KernelData& data, int64_t first, int64_t last, float*) {
  const cpu::FloatEnvironment environment;
  const int64_t pitch = data.heads * data.dim;
  const RowRun* run = data.runs;
  for (int64_t row = first; row < last; ++row) {
    while (row >= run->first_row + run->rows) ++run;
    const int64_t token = run->first_token + (row - run->first_row) * data.stride;
    for (int64_t n = 0; n < data.heads; ++n) {
      float sum[spec::kMaxHeadDim] = {};
      cpu::scalar::Accumulate<T>(data.input + token * pitch + n * data.dim, data.weight + n,
                                 data.block, pitch, data.heads, data.dim, sum);
      cpu::scalar::Store<T>(sum, data.dim, data.output + row * pitch + n * data.dim);
    }
  }
}

}  // namespace
}  // namespace scalar

HWY_EXPORT(VectorKernels);

Kernel ActiveKernel(DType dtype) {
  static constexpr Kernel kScalar[] = {scalar::Compress<cpu::Float16>,
                                       scalar::Compress<cpu::BFloat16>};
  return cpu::ChooseKernel(dtype, kScalar, [] { return HWY_DYNAMIC_POINTER(VectorKernels)(); });
}

size_t ScratchSize(const KernelData& data) {
  const size_t heads = static_cast<size_t>(data.heads);
  // The weights of a chunk's tokens and the sums, for each of the overlapping windows.
  return heads * OverlappingWindows(data) * static_cast<size_t>(data.stride + data.dim) +
         cpu::kUnalignedFloats;
}

void RunKernel(DType dtype, const KernelData& data, const cpu::Parallel& parallel) {
  int64_t rows = 0;
  if (data.run_count > 0) {
    const RowRun& last = data.runs[data.run_count - 1];
    rows = last.first_row + last.rows;
  }
  // A part begins with the tokens that its first windows share with the part before: with fewer
  // rows it would read more of them than of its own.
  const int64_t least_rows = static_cast<int64_t>(OverlappingWindows(data));
  cpu::RunParts(data, ActiveKernel(dtype), rows, data.stride * data.heads, least_rows, parallel);
}

}  // namespace nsa::compress
#endif  // HWY_ONCE
