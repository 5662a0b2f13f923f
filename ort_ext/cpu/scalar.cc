// The reference kernel: the definition of the operators as three loops, no instruction set assumed.
#include "cpu/float16.h"
#include "cpu/float_environment.h"
#include "cpu/kernels.h"

namespace nsa::cpu {
namespace {

// Adds `tokens` tokens of one head, `pitch` elements apart, to sum[0 .. dim - 1].
template <class T>
void Accumulate(const uint16_t* token, const uint16_t* weight, int64_t tokens, int64_t pitch,
                int64_t heads, int64_t dim, float* sum) {
  for (int64_t j = 0; j < tokens; ++j, token += pitch, weight += heads) {
    const float w = T::ToFloat(*weight);
    for (int64_t d = 0; d < dim; ++d) {
      const float product = T::ToFloat(token[d]) * w;
      sum[d] += product;
    }
  }
}

template <class T>
void Store(const float* sum, int64_t dim, uint16_t* output) {
  for (int64_t d = 0; d < dim; ++d) output[d] = T::FromFloat(sum[d]);
}

template <class T>
void Compress(const CompressData& data, int64_t first, int64_t last, float*) {
  const FloatEnvironment environment;
  const int64_t pitch = data.heads * data.dim;
  const RowRun* run = data.runs;
  for (int64_t row = first; row < last; ++row) {
    while (row >= run->first_row + run->rows) ++run;
    const int64_t token = run->first_token + (row - run->first_row) * data.stride;
    for (int64_t n = 0; n < data.heads; ++n) {
      float sum[spec::kMaxHeadDim] = {};
      Accumulate<T>(data.input + token * pitch + n * data.dim, data.weight + n, data.block, pitch,
                    data.heads, data.dim, sum);
      Store<T>(sum, data.dim, data.output + row * pitch + n * data.dim);
    }
  }
}

template <class T>
void Infer(const InferData& data, int64_t first, int64_t last, float*) {
  const FloatEnvironment environment;
  const int64_t pitch = data.heads * data.dim;
  for (int64_t unit = first; unit < last; ++unit) {
    const SlotWrite& write = data.writes[unit / data.heads];
    const int64_t n = unit % data.heads;
    float sum[spec::kMaxHeadDim] = {};
    const uint16_t* weight = data.weight + n;
    for (int64_t i = 0; i < write.run_count; ++i) {
      const PageRun& run = write.runs[i];
      const int64_t token = run.page * data.page + run.offset;
      Accumulate<T>(data.input + token * pitch + n * data.dim, weight, run.tokens, pitch,
                    data.heads, data.dim, sum);
      weight += run.tokens * data.heads;
    }
    Store<T>(sum, data.dim, data.cache + write.slot * pitch + n * data.dim);
  }
}

}  // namespace

const Kernels& ScalarKernels() {
  static constexpr Kernels kernels = {{Compress<Float16>, Compress<BFloat16>},
                                      {Infer<Float16>, Infer<BFloat16>}};
  return kernels;
}

}  // namespace nsa::cpu
