// See tiling.h. README.md states the cost model and the constraints in words.
#include "tiling.h"

#include "layout.h"

namespace nsa_ascend {
namespace {

// Residue classes per copy: a power of two up to this, because block and stride are multiples
// of 16.
constexpr int64_t kMostClasses = 16;

// Sizes in bytes of what a tile keeps in the unified buffer.
struct Bytes {
  int64_t in, work, sum, weight;

  int64_t total(int64_t in_buffers) const { return in_buffers * in + work + sum + weight; }
};

int64_t Shifts(const CompressShape& shape) { return DivUp(shape.block, shape.stride); }

// Of one window offset, for `heads` heads.
int64_t Axpys(const CompressShape& shape, int64_t heads) {
  return heads * DivUp(shape.dim, kLaneCount);
}

Bytes TileBytes(const CompressShape& shape, const CompressTiling& tiling, int64_t chunks) {
  const int64_t heads = LargestGroup(shape.heads, tiling.groups), width = heads * shape.dim;
  Bytes bytes;
  bytes.in = chunks * tiling.classes * width * 2;
  bytes.work =
      shape.bfloat16 ? 2 * bytes.in : chunks * width * 2;  // the rounded rows fit into either
  bytes.sum = (Shifts(shape) - 1 + chunks) * width * 4;
  bytes.weight = shape.block * RoundUp(heads * 2, kGrain);
  return bytes;
}

// The most chunks of a tile that fit, at most 255: they are the repeats of an Axpy.
int64_t MostChunks(const CompressShape& shape, const CompressTiling& tiling, const Chip& chip) {
  const int64_t fixed = TileBytes(shape, tiling, 0).total(tiling.in_buffers);
  const int64_t each = TileBytes(shape, tiling, 1).total(tiling.in_buffers) - fixed;
  return std::min(kRepeatLimit, (chip.unified_buffer - fixed) / each);
}

// What the hardware and the targets of README.md demand of a choice, the buffer's size apart.
bool IsAllowed(const CompressShape& shape, const CompressTiling& tiling) {
  const int64_t heads = LargestGroup(shape.heads, tiling.groups), width = heads * shape.dim;
  // Repeat strides have 8 bits, in blocks of 32 bytes: from row to row of the sums and of the
  // tokens.
  if (width * 4 / kGrain > kRepeatLimit) return false;
  if (tiling.classes * width * (shape.bfloat16 ? 4 : 2) / kGrain > kRepeatLimit) return false;
  // With all heads in one group, neighbouring classes make one longer burst.
  if (tiling.groups == 1 && tiling.classes * width * 2 < kWantedBurst) return false;
  // bfloat16: a Cast per copy, and a move of carried rows, are at most a tenth of a tile's
  // instructions.
  const int64_t axpys = shape.block * Axpys(shape, SmallestGroup(shape.heads, tiling.groups));
  return !shape.bfloat16 || 10 * (shape.stride / tiling.classes + 1) <= axpys + 2 ||
         tiling.classes == kMostClasses;
}

// What a chunk of a unit costs to copy: a burst that is too short costs as much as one that is not.
double ChunkBytes(const CompressShape& shape, const CompressTiling& tiling) {
  const int64_t width = LargestGroup(shape.heads, tiling.groups) * shape.dim;
  const int64_t burst = width * 2 * (tiling.groups == 1 ? tiling.classes : 1);
  const double longer = std::max(1.0, static_cast<double>(kWantedBurst) / burst);
  return shape.stride * width * 2 * longer;
}

// Estimated cycles of a unit with `chunks` chunks in `tiles` tiles.
double UnitCycles(const CompressShape& shape, const CompressTiling& tiling, int64_t chunks,
                  int64_t tiles) {
  const int64_t heads = LargestGroup(shape.heads, tiling.groups), width = heads * shape.dim;
  const int64_t loads = shape.stride / tiling.classes;
  const double axpys = static_cast<double>(shape.block * Axpys(shape, heads));
  double casts = 0;
  if (shape.bfloat16) casts = chunks * shape.stride * width / static_cast<double>(kLaneCount);
  const double vector = tiles * (axpys + loads) * kInstructionCycles + chunks * axpys + casts;
  const int64_t copies = tiles * (tiling.groups == 1 ? loads : shape.stride);
  double arrival = chunks * ChunkBytes(shape, tiling) / kCoreBytesPerCycle + copies * kCopyCycles;
  if (tiling.in_buffers == 1) arrival += casts;  // the only buffer is not free before it is widened
  return std::max(vector, arrival);
}

}  // namespace

double CompressCost(const CompressShape& shape, int64_t rows, int64_t runs, const Chip& chip,
                    CompressTiling* tiling) {
  if (!IsAllowed(shape, *tiling)) return -1;
  const int64_t halo = Shifts(shape) - 1, once = rows + halo * runs;
  // Chunks of the longest split; runs that begin inside it bring a halo of their own.
  const int64_t chunks = DivUp(once - halo, tiling->splits) + halo;
  const int64_t most = MostChunks(shape, *tiling, chip);
  // Every tile completes a row, and the rows that it carries on do not overlap where they move to.
  if (most <= halo) return -1;

  const int64_t units = tiling->splits * tiling->groups;
  const double core =
      DivUp(units, chip.cores) * UnitCycles(shape, *tiling, chunks, DivUp(chunks, most));
  // A halo that two cores read comes from the cache the second time.
  const double again = std::max<double>(0, tiling->splits * chunks - once) * kCachedShare;
  tiling->cost = Overlap(
      core, (once + again) * ChunkBytes(shape, *tiling) * tiling->groups / kChipBytesPerCycle);
  return tiling->cost;
}

CompressTiling ChooseCompressTiling(const CompressShape& shape, int64_t rows, int64_t runs,
                                    const Chip& chip) {
  CompressTiling best{};
  const auto consider = [&](CompressTiling tiling) {
    for (tiling.classes = 1; tiling.classes <= kMostClasses; tiling.classes *= 2) {
      const double cost = CompressCost(shape, rows, runs, chip, &tiling);
      if (cost >= 0 && (best.splits == 0 || cost < best.cost)) best = tiling;
    }
  };
  for (int64_t groups = 1;
       groups <= shape.heads && BurstsLongEnough(shape.heads, shape.dim, groups); ++groups) {
    // Up to four rounds of units: head groups rarely divide the cores.
    for (int64_t units = chip.cores; units <= 4 * chip.cores; units += chip.cores) {
      for (int64_t splits = DivUp(units, groups); splits >= 1; splits /= 2) {
        consider({groups, splits, 0, 2, 0});
        // Widened tokens leave their buffer at once, so that one of them nearly does for two.
        if (shape.bfloat16) consider({groups, splits, 0, 1, 0});
      }
    }
  }
  return best;
}

namespace {

struct Cut {
  int64_t room = 0;              // chunks of a split, at most
  std::vector<int64_t> ends{0};  // of each split's pieces
  std::vector<nsa::compress::RowRun> pieces;
};

// Fills splits one after the other with at most `room` chunks each.
Cut CutRuns(const nsa::compress::RowRun* runs, int64_t run_count, const CompressShape& shape,
            int64_t room) {
  const int64_t halo = Shifts(shape) - 1;
  Cut cut;
  cut.room = room;
  int64_t used = 0;
  for (int64_t i = 0; i < run_count; ++i) {
    for (int64_t done = 0; done < runs[i].rows;) {
      if (used + halo >= room) {
        cut.ends.push_back(static_cast<int64_t>(cut.pieces.size()));
        used = 0;
      }
      const int64_t rows = std::min(runs[i].rows - done, room - used - halo);
      cut.pieces.push_back(
          {runs[i].first_row + done, rows, runs[i].first_token + done * shape.stride});
      used += rows + halo;
      done += rows;
    }
  }
  cut.ends.push_back(static_cast<int64_t>(cut.pieces.size()));
  return cut;
}

// The most even cut into at most `splits`.
Cut CutEvenly(const nsa::compress::RowRun* runs, int64_t run_count, const CompressShape& shape,
              int64_t rows, int64_t splits) {
  const int64_t halo = Shifts(shape) - 1;
  int64_t low = halo + 1, high = rows + halo * run_count;
  while (low < high) {
    const int64_t room = low + (high - low) / 2;
    if (static_cast<int64_t>(CutRuns(runs, run_count, shape, room).ends.size()) - 1 <= splits) {
      high = room;
    } else {
      low = room + 1;
    }
  }
  return CutRuns(runs, run_count, shape, low);
}

}  // namespace

std::vector<int64_t> TileCompress(const CompressShape& shape, const nsa::compress::RowRun* runs,
                                  int64_t run_count, const Chip& chip) {
  const int64_t rows = run_count ? runs[run_count - 1].first_row + runs[run_count - 1].rows : 0;
  std::vector<int64_t> plan(kCompressHeader + 1, 0);
  plan[kPlanWords] = static_cast<int64_t>(plan.size());
  if (rows == 0 || shape.dim == 0) return plan;

  const CompressTiling tiling = ChooseCompressTiling(shape, rows, run_count, chip);
  const Cut cut = CutEvenly(runs, run_count, shape, rows, tiling.splits);
  const int64_t chunks = std::min(cut.room, MostChunks(shape, tiling, chip));
  const Bytes bytes = TileBytes(shape, tiling, chunks);
  const int64_t splits = static_cast<int64_t>(cut.ends.size()) - 1;

  plan[kPlanBlocks] = std::min(chip.cores, splits * tiling.groups);
  plan[kPlanHeads] = shape.heads;
  plan[kPlanDim] = shape.dim;
  plan[kPlanBlock] = shape.block;
  plan[kPlanGroups] = tiling.groups;
  plan[kPlanInputElements] = shape.tokens * shape.heads * shape.dim;
  plan[kPlanOutputElements] = rows * shape.heads * shape.dim;
  plan[kPlanInBuffers] = tiling.in_buffers;
  plan[kPlanInBytes] = bytes.in;
  plan[kPlanWorkBytes] = bytes.work;
  plan[kPlanSumBytes] = bytes.sum;
  plan[kPlanWeightBytes] = bytes.weight;
  plan[kCompressStride] = shape.stride;
  plan[kCompressSplits] = splits;
  plan[kCompressChunks] = chunks;
  plan[kCompressClasses] = tiling.classes;
  plan.pop_back();
  plan.insert(plan.end(), cut.ends.begin(), cut.ends.end());
  for (const nsa::compress::RowRun& piece : cut.pieces) {
    plan.insert(plan.end(), {piece.first_row, piece.rows, piece.first_token});
  }
  plan[kPlanWords] = static_cast<int64_t>(plan.size());
  return plan;
}

}  // namespace nsa_ascend
