// See tiling.h. README.md states the cost model and the constraints in words.
#include "tiling.h"

#include "layout.h"

namespace nsa_ascend {
namespace {

constexpr int64_t kOutBuffers = 2;

// Sizes in bytes of what the kernel keeps in the unified buffer.
struct Bytes {
  int64_t in, work, sum, out, weight;

  int64_t total(int64_t in_buffers) const {
    return in_buffers * in + work + sum + kOutBuffers * out + weight;
  }
};

Bytes UnitBytes(const DecodeShape& shape, const DecodeTiling& tiling) {
  const int64_t heads = LargestGroup(shape.heads, tiling.groups), width = heads * shape.dim;
  const int64_t tokens = DivUp(shape.block, tiling.slices);
  Bytes bytes;
  // The weights pass through the first two on their way to `weight`: 8 equal floats each.
  bytes.in = std::max(tokens * width * 2, shape.block * RoundUp(heads * 2, kGrain));
  bytes.work = std::max(tokens * width * 4, shape.block * RoundUp(heads * 4, kGrain));
  bytes.sum = width * 4;
  bytes.out = width * 2;
  bytes.weight = shape.block * RoundUp(heads, 8) * kGrain;
  return bytes;
}

}  // namespace

double DecodeCost(const DecodeShape& shape, int64_t writes, const Chip& chip,
                  const DecodeTiling& tiling) {
  const int64_t heads = LargestGroup(shape.heads, tiling.groups), width = heads * shape.dim;
  if (width * 4 / kGrain > kRepeatLimit) return -1;
  const Bytes bytes = UnitBytes(shape, tiling);
  if (bytes.total(tiling.in_buffers) > chip.unified_buffer) return -1;

  const int64_t tokens = DivUp(shape.block, tiling.slices),
                muls = heads * DivUp(shape.dim, kLaneCount);
  int64_t adds = 1;
  for (int64_t rows = tokens; rows > 2; rows -= rows / 2) ++adds;
  const double instructions = tiling.slices * (1 + muls + adds) + 1;
  const double repeats = shape.block * (2.0 * width / kLaneCount + muls);
  const double vector = instructions * kInstructionCycles + repeats;
  const int64_t burst = tiling.groups == 1 ? tokens * width * 2 : width * 2;
  const double moved =
      shape.block * width * 2 * std::max(1.0, static_cast<double>(kWantedBurst) / burst);
  const double copy = moved / kCoreBytesPerCycle + tiling.slices * kCopyCycles;
  const double unit = tiling.in_buffers > 1 ? std::max(vector, copy) : vector + copy;
  const int64_t units = writes * tiling.groups;
  const double weights = kCopyCycles + 2 * kInstructionCycles + shape.block * DivUp(heads, 8) * 2.0;
  const double core = DivUp(units, chip.cores) * unit + weights + std::min(vector, copy);
  return Overlap(core, moved * units / kChipBytesPerCycle);
}

DecodeTiling ChooseDecodeTiling(const DecodeShape& shape, int64_t writes, const Chip& chip) {
  DecodeTiling best{};
  // More than one slice only where no window fits: a page run is one copy.
  for (int64_t slices = 1; best.groups == 0 && slices <= shape.block / 2; ++slices) {
    for (int64_t groups = 1;
         groups <= shape.heads && BurstsLongEnough(shape.heads, shape.dim, groups); ++groups) {
      for (int64_t in_buffers = 2; in_buffers >= 1; --in_buffers) {
        DecodeTiling tiling{groups, slices, in_buffers, 0};
        tiling.cost = DecodeCost(shape, writes, chip, tiling);
        if (tiling.cost >= 0 && (best.groups == 0 || tiling.cost < best.cost)) best = tiling;
      }
    }
  }
  return best;
}

std::vector<int64_t> TileDecode(const DecodeShape& shape,
                                const nsa::compress_decode::SlotWrite* writes, int64_t write_count,
                                const Chip& chip) {
  static_assert(kWriteRuns == nsa::spec::nsa_compress_infer::kMaxPageRuns,
                "the plan has room for every page run");
  std::vector<int64_t> plan(kDecodeHeader, 0);
  plan[kPlanWords] = static_cast<int64_t>(plan.size());
  if (write_count == 0 || shape.dim == 0) return plan;

  const DecodeTiling tiling = ChooseDecodeTiling(shape, write_count, chip);
  const Bytes bytes = UnitBytes(shape, tiling);
  plan[kPlanBlocks] = std::min(chip.cores, tiling.groups * write_count);
  plan[kPlanHeads] = shape.heads;
  plan[kPlanDim] = shape.dim;
  plan[kPlanBlock] = shape.block;
  plan[kPlanGroups] = tiling.groups;
  plan[kPlanInputElements] = shape.pages * shape.page * shape.heads * shape.dim;
  plan[kPlanOutputElements] = shape.slots * shape.heads * shape.dim;
  plan[kPlanInBytes] = bytes.in;
  plan[kPlanWorkBytes] = bytes.work;
  plan[kPlanSumBytes] = bytes.sum;
  plan[kPlanOutBytes] = bytes.out;
  plan[kPlanWeightBytes] = bytes.weight;
  plan[kDecodeWrites] = write_count;
  plan[kDecodeSlices] = tiling.slices;
  plan[kPlanInBuffers] = tiling.in_buffers;
  for (int64_t i = 0; i < write_count; ++i) {
    plan.push_back(writes[i].slot);
    for (int64_t run = 0; run < kWriteRuns; ++run) {
      const bool used = run < writes[i].run_count;
      const nsa::compress_decode::PageRun& source = writes[i].runs[run];
      plan.push_back(used ? source.page * shape.page + source.offset : 0);
      plan.push_back(used ? source.tokens : 0);
    }
  }
  plan[kPlanWords] = static_cast<int64_t>(plan.size());
  return plan;
}

}  // namespace nsa_ascend
