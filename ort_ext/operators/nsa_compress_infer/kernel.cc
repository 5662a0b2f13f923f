// The CPU kernel of NsaCompressInfer over Google Highway, compiled once per instruction set. The
// page runs of a window go through the inner loop of cpu/window_step-inl.h, for that window alone.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "operators/nsa_compress_infer/kernel.cc"
#include "operators/nsa_compress_infer/kernel.h"

#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/float16.h"
#include "cpu/float_environment.h"
#include "cpu/scratch.h"
#include "cpu/targets.h"
#include "cpu/window_step-inl.h"
#include "cpu/window_step.h"

HWY_BEFORE_NAMESPACE();
namespace nsa::compress_decode::HWY_NAMESPACE {

using namespace cpu::HWY_NAMESPACE;

template <class T>
void CompressDecode(const KernelData& data, int64_t first, int64_t last, float* scratch) {
  const cpu::FloatEnvironment environment;
  const size_t lanes = hn::Lanes(DF());
  const size_t heads = static_cast<size_t>(data.heads), dim = static_cast<size_t>(data.dim);
  const size_t pitch = heads * dim;
  float* const sums = cpu::AlignedToLine(scratch);
  float* const weights = sums + pitch;
  for (size_t i = 0; i < static_cast<size_t>(data.block) * heads; ++i) {
    weights[i] = T::ToFloat(data.weight[i]);
  }
  const auto token = [&](const PageRun& run) {
    return data.input + static_cast<size_t>(run.page * data.page + run.offset) * pitch;
  };
  for (int64_t unit = first; unit < last;) {
    const int64_t w = unit / data.heads;
    const SlotWrite& write = data.writes[w];
    const size_t n = static_cast<size_t>(unit % data.heads);
    const size_t count = std::min(heads - n, static_cast<size_t>(last - unit));
    const float* weight = weights + n;
    for (int64_t i = 0; i < write.run_count; ++i) {
      const PageRun& run = write.runs[i];
      const uint16_t* next = i + 1 < write.run_count    ? token(write.runs[i + 1])
                             : w + 1 < data.write_count ? token(data.writes[w + 1].runs[0])
                                                        : token(run);
      Tile tile;
      tile.token = token(run) + n * dim;
      tile.pitch = pitch;
      tile.tokens = static_cast<size_t>(run.tokens);
      tile.weight = weight;
      tile.weight_pitch = heads;
      tile.head_pitch = 1;
      tile.ahead = next + n * dim;
      tile.ahead_in_order = false;
      tile.sums = sums;
      tile.results = sums;
      tile.sums_pitch = lanes;
      tile.begins = i == 0;
      tile.output = i + 1 == write.run_count
                        ? data.cache + static_cast<size_t>(write.slot) * pitch + n * dim
                        : nullptr;
      tile.streams = false;
      Walk<T, 1>(tile, count, dim / lanes);
      weight += tile.tokens * heads;
    }
    unit += static_cast<int64_t>(count);
  }
}

const Kernel* VectorKernels() {
  static constexpr Kernel kernels[] = {CompressDecode<SimdFloat16>, CompressDecode<SimdBFloat16>};
  return kernels;
}

}  // namespace nsa::compress_decode::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsa::compress_decode {
namespace scalar {
namespace {

template <class T>
void CompressDecode(const KernelData& data, int64_t first, int64_t last, float*) {
  const cpu::FloatEnvironment environment;
  const int64_t pitch = data.heads * data.dim;
  for (int64_t unit = first; unit < last; ++unit) {
    const SlotWrite& write = data.writes[unit / data.heads];
    const int64_t n = unit % data.heads;
    float sum[spec::kMaxHeadDim] = {};
    const uint16_t* weight = data.weight + n;
    for (int64_t i = 0; i < write.run_count; ++i) {
      const PageRun& run = write.runs[i];
      const int64_t token = run.page * data.page + run.offset;
      cpu::scalar::Accumulate<T>(data.input + token * pitch + n * data.dim, weight, run.tokens,
                                 pitch, data.heads, data.dim, sum);
      weight += run.tokens * data.heads;
    }
    cpu::scalar::Store<T>(sum, data.dim, data.cache + write.slot * pitch + n * data.dim);
  }
}

}  // namespace
}  // namespace scalar

HWY_EXPORT(VectorKernels);

Kernel ActiveKernel(DType dtype) {
  static constexpr Kernel kScalar[] = {scalar::CompressDecode<cpu::Float16>,
                                       scalar::CompressDecode<cpu::BFloat16>};
  return cpu::ChooseKernel(dtype, kScalar, [] { return HWY_DYNAMIC_POINTER(VectorKernels)(); });
}

size_t ScratchSize(const KernelData& data) {
  // The weights and the sums of one window.
  return static_cast<size_t>(data.heads * (data.block + data.dim)) + cpu::kUnalignedFloats;
}

void RunKernel(DType dtype, const KernelData& data, const cpu::Parallel& parallel) {
  const int64_t units = data.write_count * data.heads;
  cpu::RunParts(data, ActiveKernel(dtype), units, data.block, 1, parallel);
}

}  // namespace nsa::compress_decode
#endif  // HWY_ONCE
