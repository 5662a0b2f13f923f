// libopapi.so of the simulated CANN: the vendor's two NSA compression operators in their two-step
// form.
//
// Limits are the vendor's, those that its host code checks and those that its documentation adds;
// what its host code does not notice and its kernel would get wrong (an index out of range, two
// sequences with one slot) is a fault of the task, as on the device, only that here it always is
// one.
#include "opapi.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>

namespace nsa_sim {
namespace {

// ---------------------------------------------------------------------------------------------------
// Arithmetic

// The vendor's tree: the upper part onto the lower, then halves onto halves. `stride` in elements
// of `terms`; the sum is left in terms[0].
void tree_sum(float* terms, std::int64_t count) {
  std::int64_t half = 1;
  while (half * 2 < count) half *= 2;
  if (count > 1)
    for (std::int64_t i = 0; i + half < count; ++i) terms[i] += terms[i + half];
  while (half > 1) {
    half /= 2;
    for (std::int64_t i = 0; i < half; ++i) terms[i] += terms[i + half];
  }
}

// ---------------------------------------------------------------------------------------------------
// Prefill

struct Prefill {
  aclTensor input, weight, output;
  std::vector<std::int64_t> ends;
  std::int64_t block, stride, rows;
};

std::int64_t row_count(const std::vector<std::int64_t>& ends, std::int64_t block,
                       std::int64_t stride) {
  std::int64_t rows = 0, begin = 0;
  for (const std::int64_t end : ends) {
    if (end - begin >= block) rows += (end - begin - block + stride) / stride;
    begin = end;
  }
  return rows;
}

void check_prefill_limits(const aclTensor& input, const aclTensor& weight, std::int64_t block,
                          std::int64_t stride) {
  const std::int64_t heads = input.dims[1], dim = input.dims[2];
  if (heads <= 0 || dim <= 0) invalid("Head Num and Head Dim must be > 0");
  if (weight.dims[0] != block)
    invalid(text("weight.shape[0] = %lld is not compressBlockSize = %lld",
                 static_cast<long long>(weight.dims[0]), static_cast<long long>(block)));
  if (weight.dims[1] != heads)
    invalid(text("weight.shape[1] = %lld is not headNum = %lld",
                 static_cast<long long>(weight.dims[1]), static_cast<long long>(heads)));
  // Documented, not checked by the vendor's code:
  if (dim % 16 != 0 || dim > 256) invalid("documented: headDim is a multiple of 16, at most 256");
  if (heads > 128) invalid("documented: headNum is at most 128");
  if (block % 16 != 0 || block < 16 || block > 128)
    invalid("documented: compressBlockSize is a multiple of 16 in [16, 128]");
  if (stride % 16 != 0 || stride < 16 || stride > block)
    invalid("documented: compressStride is a multiple of 16 in [16, compressBlockSize]");
}

void compress_window(const Prefill& job, const std::uint16_t* input, const std::uint16_t* weight,
                     std::int64_t start, std::uint16_t* output) {
  const std::int64_t heads = job.input.dims[1], dim = job.input.dims[2], row = heads * dim;
  float terms[128];
  for (std::int64_t n = 0; n < heads; ++n)
    for (std::int64_t d = 0; d < dim; ++d) {
      for (std::int64_t j = 0; j < job.block; ++j)
        terms[j] = to_float(input[(start + j) * row + n * dim + d], job.input.type) *
                   to_float(weight[j * heads + n], job.input.type);
      tree_sum(terms, job.block);
      output[n * dim + d] = from_float(terms[0], job.input.type, Rounding::kHalfAway);
    }
}

void run_prefill(const Prefill& job) {
  const std::uint16_t* input = halves(job.input, "input");
  const std::uint16_t* weight = halves(job.weight, "weight");
  std::uint16_t* output = mutable_halves(job.output, "output");
  const std::int64_t row = job.input.dims[1] * job.input.dims[2];
  std::int64_t begin = 0;
  for (const std::int64_t end : job.ends) {
    for (std::int64_t start = begin; start + job.block <= end; start += job.stride) {
      if (start < 0 || start + job.block > job.input.dims[0])
        throw DeviceFault{kFault, text("actSeqLen leads to token %lld, input has %lld",
                                       static_cast<long long>(start + job.block - 1),
                                       static_cast<long long>(job.input.dims[0]))};
      compress_window(job, input, weight, start, output);
      output += row;
    }
    begin = end;
  }
}

aclOpExecutor* plan_prefill(const aclTensor* input, const aclTensor* weight,
                            const aclIntArray* act_seq_len, const char* layout, std::int64_t block,
                            std::int64_t stride, std::int64_t act_seq_len_type,
                            const aclTensor* output) {
  Prefill job{tensor(input, "input"),
              tensor(weight, "weight"),
              tensor(output, "output"),
              {},
              block,
              stride,
              0};
  if (job.input.type != job.weight.type || job.input.type != job.output.type)
    invalid("the data types of input, weight and output are not equal");
  require_half(job.input, "input");
  require_rank(job.input, "input", 3);
  require_rank(job.weight, "weight", 2);
  require_rank(job.output, "output", 3);
  check_prefill_limits(job.input, job.weight, block, stride);
  if (layout == nullptr || std::string(layout) != "TND")
    invalid(text("layoutOptional = %s, only TND", layout == nullptr ? "null" : layout));
  job.ends = lengths_of(act_seq_len);
  if (act_seq_len_type != 0) invalid("actSeqLenType is only 0 here");
  job.rows = row_count(job.ends, block, stride);
  if (job.rows == 0) tiling("no window fits: the vendor's tiling walks off an array when T' = 0");
  if (job.output.dims != std::vector<std::int64_t>{job.rows, job.input.dims[1], job.input.dims[2]})
    invalid(text("output.shape[0] = %lld, %lld windows fit",
                 static_cast<long long>(job.output.dims[0]), static_cast<long long>(job.rows)));
  return plan("aclnnNsaCompress", {input, weight, output}, [job] { run_prefill(job); });
}

// ---------------------------------------------------------------------------------------------------
// Decode

struct Decode {
  aclTensor input, weight, slots, table, cache;
  std::vector<std::int64_t> lengths;
  std::int64_t block, stride, page;
};

void check_decode_limits(const Decode& job) {
  const std::int64_t heads = job.input.dims[2], dim = job.input.dims[3];
  if (job.block % 16 != 0 || job.stride % 16 != 0 || job.stride < 1)
    tiling("compressBlockSize and compressStride should be divisible by 16");
  if (job.block < job.stride) tiling("compressBlockSize < compressStride");
  if (job.weight.dims[1] != heads || job.weight.dims[0] != job.block)
    tiling("weight is not [compressBlockSize, headNum]");
  if (job.cache.dims[1] != heads || job.cache.dims[2] != dim)
    tiling("outputCache is not [slots, headNum, headDim]");
  if (dim % 16 != 0) tiling("headDim should be divisible by 16");
  if (job.block > 64) tiling("do not support compressBlockSize larger than 64");
  if (heads == 0) tiling("headNum can not be 0");
  if (heads > 64) tiling("do not support headNum larger than 64");
  if (heads > 50 && heads % 2 == 1) tiling("do not support odd headNum larger than 50");
  if (job.lengths.size() > 2048) tiling("do not support batchSize larger than 2048");
  for (const aclTensor* each : {&job.input, &job.weight, &job.cache})
    if (element_count(*each) == 0) tiling("do not support empty input/weight/outputCache");
  // Documented, not checked by the vendor's code:
  if (job.page != job.input.dims[1]) invalid("input.shape[1] is not pageBlockSize");
  const auto batch = static_cast<std::int64_t>(job.lengths.size());
  if (job.slots.dims[0] != batch || job.table.dims[0] != batch)
    invalid("slotMapping, blockTable and actSeqLen do not have one batch size");
}

// Physical token of `token` of sequence `b`. Every index that leaves its array is a fault.
std::int64_t physical_token(const Decode& job, const std::int32_t* table, std::int64_t b,
                            std::int64_t token) {
  const std::int64_t logical = token / job.page, pages = job.table.dims[1];
  if (logical >= pages)
    throw DeviceFault{kFault, text("actSeqLen[%lld] needs page %lld, blockTable has %lld columns",
                                   static_cast<long long>(b), static_cast<long long>(logical),
                                   static_cast<long long>(pages))};
  const std::int32_t page = table[b * pages + logical];
  if (page < 0 || page >= job.input.dims[0])
    throw DeviceFault{kFault, text("blockTable[%lld, %lld] = %d, input has %lld pages",
                                   static_cast<long long>(b), static_cast<long long>(logical), page,
                                   static_cast<long long>(job.input.dims[0]))};
  return page * job.page + token % job.page;
}

// Tiles of 8 tokens are summed first, then the tiles' sums.
float decode_sum(float* terms, std::int64_t block) {
  constexpr std::int64_t kTile = 8;
  float tiles[8];
  for (std::int64_t tile = 0; tile < block / kTile; ++tile) {
    tree_sum(terms + tile * kTile, kTile);
    tiles[tile] = terms[tile * kTile];
  }
  tree_sum(tiles, block / kTile);
  return tiles[0];
}

void write_slot(const Decode& job, std::int64_t b, const std::uint16_t* input,
                const std::uint16_t* weight, const std::int32_t* table, std::uint16_t* out) {
  const std::int64_t heads = job.input.dims[2], dim = job.input.dims[3], row = heads * dim;
  std::int64_t tokens[64];
  const std::int64_t first = job.lengths[static_cast<std::size_t>(b)] - job.block;
  for (std::int64_t j = 0; j < job.block; ++j) tokens[j] = physical_token(job, table, b, first + j);
  float terms[64];
  for (std::int64_t n = 0; n < heads; ++n)
    for (std::int64_t d = 0; d < dim; ++d) {
      for (std::int64_t j = 0; j < job.block; ++j)
        terms[j] = to_float(input[tokens[j] * row + n * dim + d], job.input.type) *
                   to_float(weight[j * heads + n], job.input.type);
      out[n * dim + d] =
          from_float(decode_sum(terms, job.block), job.input.type, Rounding::kNearestEven);
    }
}

void run_decode(const Decode& job) {
  const std::uint16_t* input = halves(job.input, "input");
  const std::uint16_t* weight = halves(job.weight, "weight");
  const std::int32_t* slots = indices(job.slots, "slotMapping");
  const std::int32_t* table = indices(job.table, "blockTable");
  std::uint16_t* cache = mutable_halves(job.cache, "outputCache");
  const std::int64_t row = job.input.dims[2] * job.input.dims[3];
  std::set<std::int32_t> written;
  for (std::int64_t b = 0; b < static_cast<std::int64_t>(job.lengths.size()); ++b) {
    const std::int64_t length = job.lengths[static_cast<std::size_t>(b)];
    if (length < job.block || (length - job.block) % job.stride != 0) continue;
    const std::int32_t slot = slots[b];
    if (slot < 0 || slot >= job.cache.dims[0])
      throw DeviceFault{
          kFault, text("slotMapping[%lld] = %d, outputCache has %lld slots",
                       static_cast<long long>(b), slot, static_cast<long long>(job.cache.dims[0]))};
    if (!written.insert(slot).second)
      throw DeviceFault{kFault, text("two sequences write slot %d: a race on the device", slot)};
    write_slot(job, b, input, weight, table, cache + slot * row);
  }
}

aclOpExecutor* plan_decode(const aclTensor* input, const aclTensor* weight, const aclTensor* slots,
                           const aclIntArray* act_seq_len, const aclTensor* table,
                           const char* layout, std::int64_t block, std::int64_t stride,
                           std::int64_t act_seq_len_type, std::int64_t page,
                           const aclTensor* cache) {
  if (table == nullptr) invalid("blockTableOptional is null: the vendor's kernel needs it");
  Decode job{tensor(input, "input"),
             tensor(weight, "weight"),
             tensor(slots, "slotMapping"),
             tensor(table, "blockTableOptional"),
             tensor(cache, "outputCache"),
             lengths_of(act_seq_len),
             block,
             stride,
             page};
  require_half(job.input, "input");
  require_type(job.weight, "weight", job.input.type);
  require_type(job.cache, "outputCache", job.input.type);
  require_type(job.slots, "slotMapping", ACL_INT32);
  require_type(job.table, "blockTableOptional", ACL_INT32);
  require_rank(job.input, "input", 4);
  require_rank(job.weight, "weight", 2);
  require_rank(job.slots, "slotMapping", 1);
  require_rank(job.table, "blockTableOptional", 2);
  require_rank(job.cache, "outputCache", 3);
  const std::string name = upper(layout);
  if (layout != nullptr && name != "TND" && name != "BSH" && name != "SBH" && name != "BSND" &&
      name != "BNSD")
    tiling(text("layoutOptional = %s", layout));
  if (act_seq_len_type != 1) tiling("actSeqLenType is only 1 here");
  check_decode_limits(job);
  return plan("aclnnNsaCompressWithCache", {input, weight, slots, table, cache},
              [job] { run_decode(job); });
}

}  // namespace
}  // namespace nsa_sim

using namespace nsa_sim;

extern "C" {

aclnnStatus aclnnNsaCompressGetWorkspaceSize(const aclTensor* input, const aclTensor* weight,
                                             const aclIntArray* actSeqLenOptional,
                                             char* layoutOptional, int64_t compressBlockSize,
                                             int64_t compressStride, int64_t actSeqLenType,
                                             aclTensor* output, uint64_t* workspaceSize,
                                             aclOpExecutor** executor) {
  return call(__func__, kContext, [&] {
    require_results(workspaceSize, executor);
    hand_out(plan_prefill(input, weight, actSeqLenOptional, layoutOptional, compressBlockSize,
                          compressStride, actSeqLenType, output),
             workspaceSize, executor);
  });
}

aclnnStatus aclnnNsaCompress(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor,
                             aclrtStream stream) {
  return execute(__func__, workspace, workspaceSize, executor, stream);
}

aclnnStatus aclnnNsaCompressWithCacheGetWorkspaceSize(
    const aclTensor* input, const aclTensor* weight, const aclTensor* slotMapping,
    const aclIntArray* actSeqLenOptional, const aclTensor* blockTableOptional, char* layoutOptional,
    int64_t compressBlockSize, int64_t compressStride, int64_t actSeqLenType, int64_t pageBlockSize,
    aclTensor* outputCache, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return call(__func__, kContext, [&] {
    require_results(workspaceSize, executor);
    hand_out(plan_decode(input, weight, slotMapping, actSeqLenOptional, blockTableOptional,
                         layoutOptional, compressBlockSize, compressStride, actSeqLenType,
                         pageBlockSize, outputCache),
             workspaceSize, executor);
  });
}

aclnnStatus aclnnNsaCompressWithCache(void* workspace, uint64_t workspaceSize,
                                      aclOpExecutor* executor, aclrtStream stream) {
  return execute(__func__, workspace, workspaceSize, executor, stream);
}
}
