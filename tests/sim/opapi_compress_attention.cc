// libopapi.so of the simulated CANN: NsaCompressAttention and NsaCompressAttentionInfer.
//
// Limits and faults as opapi.cc says. Read from ops-transformer of November 2025 and July 2026.
#include <optional>

#include "aclnn_attention.h"
#include "attention.h"

namespace nsa_sim {
namespace {

struct Windows {
  std::int64_t block, stride, select, count;

  std::int64_t per_block() const { return select / stride; }
  std::int64_t overlap() const { return block / stride; }
};

// ---------------------------------------------------------------------------------------------------
// Prefill

struct Prefill {
  aclTensor query, key, value, maxima, sums, out, topk;
  std::optional<aclTensor> atten_mask, topk_mask;
  std::vector<std::int64_t> lengths, cmp_lengths;
  float scale;
  Windows windows;
};

// One query token's heads of one group.
struct Place {
  std::int64_t begin, cmp_begin, length, cmp_length, t, group;
};

struct Memory {
  std::vector<float> query, key, value;
  const std::uint8_t *atten_mask, *topk_mask;
  std::int64_t most_cmp;
  float *maxima, *sums;
  std::uint16_t* out;
  std::int32_t* topk;
};

void attend(const Prefill& job, const Memory& memory, const Place& at) {
  const std::int64_t heads = job.query.dims[1], dim = job.query.dims[2];
  const std::int64_t groups = job.key.dims[1], value_dim = job.value.dims[2], each = heads / groups;
  const std::int64_t most_blocks = ceil_div(memory.most_cmp, job.windows.per_block());
  std::vector<float> scores(
      static_cast<std::size_t>(ceil_div(at.cmp_length, job.windows.per_block())), 0.0f);
  std::vector<const float*> values;
  for (std::int64_t j = 0; j < at.cmp_length; ++j)
    values.push_back(&memory.value[static_cast<std::size_t>(
        ((at.cmp_begin + j) * groups + at.group) * value_dim)]);
  for (std::int64_t g = 0; g < each; ++g) {
    const std::int64_t row = (at.begin + at.t) * heads + at.group * each + g;
    const float* query = &memory.query[static_cast<std::size_t>(row * dim)];
    std::vector<float> p(static_cast<std::size_t>(at.cmp_length));
    for (std::int64_t j = 0; j < at.cmp_length; ++j) {
      const std::int64_t token = (at.cmp_begin + j) * groups + at.group;
      float& logit = p[static_cast<std::size_t>(j)];
      logit = dot(query, &memory.key[static_cast<std::size_t>(token * dim)], dim) * job.scale;
      if (memory.atten_mask != nullptr && memory.atten_mask[at.t * memory.most_cmp + j] != 0)
        logit = kLowest;
    }
    const Softmax found = softmax(p);
    // [sequence][head][token][8]
    const std::int64_t kept = at.begin * heads + (at.group * each + g) * at.length + at.t;
    std::fill_n(memory.maxima + kept * 8, 8, found.maximum);
    std::fill_n(memory.sums + kept * 8, 8, found.sum);
    put_result(p, values, value_dim, job.query.type, Rounding::kNearestEven,
               memory.out + row * value_dim);
    add_scores(p, job.windows.per_block(), job.windows.overlap(), scores);
  }
  for (std::size_t s = 0; memory.topk_mask != nullptr && s < scores.size(); ++s)
    if (memory.topk_mask[at.t * most_blocks + static_cast<std::int64_t>(s)] != 0)
      scores[s] = kForced;
  put_highest(scores, job.windows.count,
              memory.topk + ((at.begin + at.t) * groups + at.group) * job.windows.count);
}

void run_prefill(const Prefill& job) {
  const Memory memory{
      floats(job.query, "query"),
      floats(job.key, "key"),
      floats(job.value, "value"),
      job.atten_mask ? bytes_of(*job.atten_mask, "attenMask") : nullptr,
      job.topk_mask ? bytes_of(*job.topk_mask, "topkMask") : nullptr,
      *std::max_element(job.cmp_lengths.begin(), job.cmp_lengths.end()),
      mutable_floats(job.maxima, "softmaxMaxOut"),
      mutable_floats(job.sums, "softmaxSumOut"),
      mutable_halves(job.out, "attentionOut"),
      mutable_indices(job.topk, "topkIndicesOut"),
  };
  std::int64_t begin = 0, cmp_begin = 0;
  for (std::size_t b = 0; b < job.lengths.size(); ++b) {
    for (std::int64_t t = 0; t < job.lengths[b]; ++t)
      for (std::int64_t group = 0; group < job.key.dims[1]; ++group)
        attend(job, memory, {begin, cmp_begin, job.lengths[b], job.cmp_lengths[b], t, group});
    begin += job.lengths[b];
    cmp_begin += job.cmp_lengths[b];
  }
}

void check_masks(const Prefill& job, std::int64_t most, std::int64_t most_cmp) {
  const auto check = [&](const std::optional<aclTensor>& mask, const char* name,
                         std::int64_t columns) {
    if (!mask) return;
    if (mask->type != ACL_BOOL && mask->type != ACL_UINT8) tiling(text("%s: bool or uint8", name));
    require_rank(*mask, name, 2);
    // Documented; the kernel takes the columns for the distance of rows.
    if (mask->dims[0] < most || mask->dims[1] != columns)
      invalid(text("%s must be [%lld, %lld], got [%lld, %lld]", name, ll(most), ll(columns),
                   ll(mask->dims[0]), ll(mask->dims[1])));
  };
  check(job.atten_mask, "attenMask", most_cmp);
  check(job.topk_mask, "topkMask", ceil_div(most_cmp, job.windows.per_block()));
}

void check_prefill(const Prefill& job, std::int64_t head_num) {
  const std::vector<std::int64_t>&query = job.query.dims, &key = job.key.dims;
  for (const auto& [argument, name] :
       {std::pair{&job.query, "query"}, {&job.key, "key"}, {&job.value, "value"}}) {
    require_rank(*argument, name, 3);
    require_not_empty(*argument, name);
  }
  if (key[2] != query[2] || job.value.dims[2] > query[2]) invalid("D of query and key, Dv <= D");
  if (job.value.dims[0] != key[0] || job.value.dims[1] != key[1]) invalid("key and value differ");
  if (query[2] > 768) tiling("dSize is not in range");
  if (head_num != query[1] || query[1] % key[1] != 0) tiling("head_num and the heads of key");
  const std::int64_t group = query[1] / key[1];
  if (!divides_128(group) || group == 128) invalid("documented: G < 128 and 128 % G == 0");
  if (job.lengths.empty() || job.lengths.size() != job.cmp_lengths.size())
    tiling("VarLen scene, q is not equal kv");
  if (job.lengths.size() > 4096) tiling("more than 4096 sequences: the tiling's arrays end there");
  if (std::accumulate(job.lengths.begin(), job.lengths.end(), std::int64_t{0}) > query[0] ||
      std::accumulate(job.cmp_lengths.begin(), job.cmp_lengths.end(), std::int64_t{0}) > key[0])
    tiling("Query T and key T need be larger than the sums of the lengths");
  // The tiling reads these attributes through pointers to char, which is signed here.
  require_windows(static_cast<char>(job.windows.block), static_cast<char>(job.windows.stride),
                  static_cast<char>(job.windows.select));
  const auto [least, most] = std::minmax_element(job.cmp_lengths.begin(), job.cmp_lengths.end());
  const std::int64_t count = job.windows.count;
  if (count < 1 || count > 32 || count > ceil_div(*least, job.windows.per_block()))
    tiling("selectBlockCount must be in 1 .. 32 and at most min(SelSkv)");
  if (*most > 14000) invalid("documented: CmpSkv <= 14000");
  check_masks(job, *std::max_element(job.lengths.begin(), job.lengths.end()), *most);
  require_dims(job.out, "attentionOut", {query[0], query[1], job.value.dims[2]});
  require_dims(job.topk, "topkIndicesOut", {query[0], key[1], count});
  require_dims(job.maxima, "softmaxMaxOut", {query[0], query[1], 8});
  require_dims(job.sums, "softmaxSumOut", {query[0], query[1], 8});
}

std::optional<aclTensor> optional_tensor(const aclTensor* argument, const char* name) {
  if (argument == nullptr) return std::nullopt;
  return tensor(argument, name);
}

// ---------------------------------------------------------------------------------------------------
// Decode

struct Decode {
  aclTensor query, key, value, table, out, topk;  // [B, N1, D], [pages, page, N2 * D], ...
  std::vector<std::int64_t> lengths;
  std::int64_t heads, groups, page;
  float scale;
  Windows windows;

  std::int64_t blocks(std::int64_t length) const {
    return ceil_div((length - 1) * windows.stride + windows.block, windows.select);
  }
};

void run_decode(const Decode& job) {
  const std::vector<float> query = floats(job.query, "query"), key = floats(job.key, "key"),
                           value = floats(job.value, "value");
  const std::int32_t* table = indices(job.table, "blockTable");
  std::uint16_t* out = mutable_halves(job.out, "output");
  std::int32_t* topk = mutable_indices(job.topk, "topKOutput");
  const std::int64_t dim = job.query.dims.back(), value_dim = job.value.dims[2] / job.groups;
  const std::int64_t each = job.heads / job.groups;
  for (std::int64_t b = 0; b < static_cast<std::int64_t>(job.lengths.size()); ++b) {
    const std::int64_t length = job.lengths[static_cast<std::size_t>(b)];
    std::vector<std::int64_t> rows;
    for (std::int64_t j = 0; j < length; ++j)
      rows.push_back(paged_row(table, job.table.dims[1], job.key.dims[0], job.page, b, j));
    for (std::int64_t group = 0; group < job.groups; ++group) {
      std::vector<float> scores(static_cast<std::size_t>(job.blocks(length)), 0.0f);
      std::vector<const float*> values;
      for (const std::int64_t row : rows)
        values.push_back(&value[static_cast<std::size_t>((row * job.groups + group) * value_dim)]);
      for (std::int64_t head = group * each; head < (group + 1) * each; ++head) {
        std::vector<float> p;
        for (const std::int64_t row : rows)
          p.push_back(dot(&query[static_cast<std::size_t>((b * job.heads + head) * dim)],
                          &key[static_cast<std::size_t>((row * job.groups + group) * dim)], dim) *
                      job.scale);
        softmax(p);
        put_result(p, values, value_dim, job.query.type, Rounding::kNearestEven,
                   out + (b * job.heads + head) * value_dim);
        add_scores(p, job.windows.per_block(), job.windows.overlap(), scores);
      }
      const std::size_t last = scores.size() - 1;
      scores[0] = scores[last] = scores[last > 0 ? last - 1 : 0] = kForced;
      put_highest(scores, job.windows.count, topk + (b * job.groups + group) * job.windows.count);
    }
  }
}

// A layout's [B, 1, ...] is [B, ...] in memory.
void check_layout(const char* layout, const aclTensor& query) {
  const std::string name = layout == nullptr ? "" : layout;
  if (name != "TND" && name != "BSND") invalid(text("layout %s is not TND or BSND", name.c_str()));
  require_rank(query, "query", name == "TND" ? 3 : 4);
  if (name == "BSND" && query.dims[1] != 1)
    throw Refused{ACL_ERROR_API_NOT_SUPPORT, "several query tokens are not simulated"};
}

void check_decode(const Decode& job, const aclIntArray* query_lengths) {
  require_rank(job.key, "key", 3);
  require_rank(job.value, "value", 3);
  require_rank(job.table, "blockTable", 2);
  require_type(job.table, "blockTable", ACL_INT32);
  require_type(job.topk, "topKOutput", ACL_INT32);
  const std::int64_t batch = job.query.dims[0], dim = job.query.dims.back();
  if (batch < 1 || batch > 10000) invalid("batchSize not in [1, 10000]");
  if (job.table.dims[0] != batch || static_cast<std::int64_t>(job.lengths.size()) != batch)
    tiling("batchSize in query, blockTable, actualCmpKvSeqLengths must be equal");
  if (query_lengths != nullptr)
    for (const std::int64_t length : integers(query_lengths, "actualQSeqLen"))
      if (length != 1)
        throw Refused{ACL_ERROR_API_NOT_SUPPORT, "several query tokens are not simulated"};
  if (job.groups < 1 || job.heads % job.groups != 0 ||
      job.heads != job.query.dims[job.query.dims.size() - 2])
    tiling("numHeads and numKeyValueHeads");
  if (!divides_128(job.heads / job.groups)) tiling("groupSize must divide 128");
  if (job.key.dims[0] < 1 || job.key.dims[0] != job.value.dims[0]) tiling("numBlocks in k, v");
  if (job.key.dims[1] != job.page || job.value.dims[1] != job.page) tiling("pageBlockSize in k, v");
  if (job.page < 16 || job.page > 128 || job.page % 16 != 0)
    tiling("pageBlockSize: 16 to 128 by 16");
  const std::int64_t value_dim = job.value.dims[2] / job.groups;
  if (job.key.dims[2] != dim * job.groups) invalid("documented: D of query and key are equal");
  if (dim < 1 || dim > 192 || value_dim < 1 || value_dim > 128 || value_dim > dim)
    tiling("headSizeQK within (0, 192], headSizeVO within (0, 128] and not greater");
  require_windows(job.windows.block, job.windows.stride, job.windows.select);
  const auto [least, most] = std::minmax_element(job.lengths.begin(), job.lengths.end());
  if (*least < 1) tiling("a length < 1 wraps around");
  if (*most > 8192) tiling("maxSeqlen must be within (0, 8192]");
  if (job.blocks(*most) > 4096) tiling("selectBlockNum must be within (0, 4096]");
  if (job.windows.count < 1 || job.blocks(*least) < job.windows.count)
    tiling("selectBlockCount should be smaller than the total candidate select blocks");
}

// The tensors that are there.
std::vector<const aclTensor*> given(std::vector<const aclTensor*> tensors) {
  tensors.erase(std::remove(tensors.begin(), tensors.end(), nullptr), tensors.end());
  return tensors;
}

}  // namespace
}  // namespace nsa_sim

using namespace nsa_sim;

extern "C" {

aclnnStatus aclnnNsaCompressAttentionGetWorkspaceSize(
    const aclTensor* query, const aclTensor* key, const aclTensor* value,
    const aclTensor* attenMaskOptional, const aclTensor* topkMaskOptional,
    const aclIntArray* actualSeqQLenOptional, const aclIntArray* actualCmpSeqKvLenOptional,
    const aclIntArray* actualSelSeqKvLenOptional, double scaleValue, int64_t headNum,
    char* inputLayout, int64_t sparseMode, int64_t compressBlockSize, int64_t compressStride,
    int64_t selectBlockSize, int64_t selectBlockCount, const aclTensor* softmaxMaxOut,
    const aclTensor* softmaxSumOut, const aclTensor* attentionOut, const aclTensor* topkIndicesOut,
    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return call(__func__, kContext, [&] {
    require_results(workspaceSize, executor);
    const Prefill job{
        tensor(query, "query"),
        tensor(key, "key"),
        tensor(value, "value"),
        tensor(softmaxMaxOut, "softmaxMaxOut"),
        tensor(softmaxSumOut, "softmaxSumOut"),
        tensor(attentionOut, "attentionOut"),
        tensor(topkIndicesOut, "topkIndicesOut"),
        optional_tensor(attenMaskOptional, "attenMask"),
        optional_tensor(topkMaskOptional, "topkMask"),
        lengths_from(integers(actualSeqQLenOptional, "actualSeqQLen")),
        lengths_from(integers(actualCmpSeqKvLenOptional, "actualCmpSeqKvLen")),
        static_cast<float>(scaleValue),
        {compressBlockSize, compressStride, selectBlockSize, selectBlockCount},
    };
    if (inputLayout == nullptr || std::string(inputLayout) != "TND") invalid("layout is not TND");
    if (sparseMode != 0 && sparseMode != 1) invalid("documented: sparseMode is 0 or 1");
    require_one_type(job.query, job.key, job.value, job.out);
    require_type(job.topk, "topkIndicesOut", ACL_INT32);
    require_type(job.maxima, "softmaxMaxOut", ACL_FLOAT);
    require_type(job.sums, "softmaxSumOut", ACL_FLOAT);
    check_prefill(job, headNum);
    if (integers(actualSelSeqKvLenOptional, "actualSelSeqKvLen").size() != job.lengths.size())
      invalid("actualSelSeqKvLen has another number of sequences");
    hand_out(plan("aclnnNsaCompressAttention",
                  given({query, key, value, attenMaskOptional, topkMaskOptional, softmaxMaxOut,
                         softmaxSumOut, attentionOut, topkIndicesOut}),
                  [job] { run_prefill(job); }),
             workspaceSize, executor);
  });
}

aclnnStatus aclnnNsaCompressAttention(void* workspace, uint64_t workspaceSize,
                                      aclOpExecutor* executor, aclrtStream stream) {
  return execute(__func__, workspace, workspaceSize, executor, stream);
}

aclnnStatus aclnnNsaCompressAttentionInferGetWorkspaceSize(
    const aclTensor* query, const aclTensor* key, const aclTensor* value,
    const aclTensor* attentionMaskOptional, const aclTensor* blockTableOptional,
    const aclIntArray* actualQSeqLenOptional, const aclIntArray* actualCmpKvSeqLenOptional,
    const aclIntArray*, const aclTensor*, int64_t numHeads, int64_t numKeyValueHeads,
    int64_t selectBlockSize, int64_t selectBlockCount, int64_t compressBlockSize,
    int64_t compressBlockStride, double scaleValue, char* layoutOptional, int64_t pageBlockSize,
    int64_t, const aclTensor* output, const aclTensor* topKOutput, uint64_t* workspaceSize,
    aclOpExecutor** executor) {
  return call(__func__, kContext, [&] {
    require_results(workspaceSize, executor);
    const Decode job{
        tensor(query, "query"),
        tensor(key, "key"),
        tensor(value, "value"),
        tensor(blockTableOptional, "blockTable"),
        tensor(output, "output"),
        tensor(topKOutput, "topKOutput"),
        integers(actualCmpKvSeqLenOptional, "actualCmpKvSeqLen"),
        numHeads,
        numKeyValueHeads,
        pageBlockSize,
        static_cast<float>(scaleValue),
        {compressBlockSize, compressBlockStride, selectBlockSize, selectBlockCount},
    };
    if (attentionMaskOptional != nullptr)
      throw Refused{ACL_ERROR_API_NOT_SUPPORT, "a mask in decode is not simulated"};
    require_one_type(job.query, job.key, job.value, job.out);
    check_layout(layoutOptional, job.query);
    check_decode(job, actualQSeqLenOptional);
    hand_out(plan("aclnnNsaCompressAttentionInfer",
                  {query, key, value, blockTableOptional, output, topKOutput},
                  [job] { run_decode(job); }),
             workspaceSize, executor);
  });
}

aclnnStatus aclnnNsaCompressAttentionInfer(void* workspace, uint64_t workspaceSize,
                                           aclOpExecutor* executor, aclrtStream stream) {
  return execute(__func__, workspace, workspaceSize, executor, stream);
}
}
