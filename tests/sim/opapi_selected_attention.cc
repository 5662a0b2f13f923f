// libopapi.so of the simulated CANN: NsaSelectedAttention and NsaSelectedAttentionInfer.
//
// Limits and faults as opapi.cc says. Read from ops-transformer of November 2025 and July 2026.
#include <set>

#include "aclnn_attention.h"
#include "attention.h"

namespace nsa_sim {
namespace {

// ---------------------------------------------------------------------------------------------------
// Prefill

struct Prefill {
  aclTensor query, key, value, topk, maxima, sums, out;
  std::vector<std::int64_t> lengths, kv_lengths;
  float scale;
  std::int64_t select, count;
  bool causal;  // the mask is there; its content is never read
};

// First tokens of the chosen blocks, in the sequence. The kernel reads exactly `count` full blocks.
std::vector<std::int64_t> chosen(const Prefill& job, const std::int32_t* topk,
                                 std::int64_t length) {
  std::vector<std::int64_t> firsts;
  for (std::int64_t i = 0; i < job.count; ++i) {
    const std::int64_t first = topk[i] * job.select;
    if (topk[i] < 0 || first + job.select > length)
      throw DeviceFault{kFault, text("block %d of a sequence of %lld tokens: read outside of it",
                                     topk[i], ll(length))};
    firsts.push_back(first);
  }
  return firsts;
}

void run_prefill(const Prefill& job) {
  const std::vector<float> query = floats(job.query, "query"), key = floats(job.key, "key"),
                           value = floats(job.value, "value");
  const std::int32_t* topk = indices(job.topk, "topkIndices");
  std::uint16_t* out = mutable_halves(job.out, "attentionOut");
  float *maxima = mutable_floats(job.maxima, "softmaxMaxOut"),
        *sums = mutable_floats(job.sums, "softmaxSumOut");
  const std::int64_t heads = job.query.dims[1], dim = job.query.dims[2];
  const std::int64_t groups = job.key.dims[1], value_dim = job.value.dims[2], each = heads / groups;
  std::int64_t row = 0, kv_begin = 0;
  for (std::size_t b = 0; b < job.lengths.size(); kv_begin += job.kv_lengths[b++]) {
    for (std::int64_t t = 0; t < job.lengths[b]; ++t, ++row) {
      for (std::int64_t group = 0; group < groups; ++group) {
        std::vector<std::int64_t> tokens;
        for (const std::int64_t first :
             chosen(job, topk + (row * groups + group) * job.count, job.kv_lengths[b]))
          for (std::int64_t i = 0; i < job.select; ++i) tokens.push_back(first + i);
        std::vector<const float*> values;
        for (const std::int64_t token : tokens)
          values.push_back(
              &value[static_cast<std::size_t>(((kv_begin + token) * groups + group) * value_dim)]);
        for (std::int64_t head = group * each; head < (group + 1) * each; ++head) {
          std::vector<float> p;
          for (const std::int64_t token : tokens) {
            const float* at =
                &key[static_cast<std::size_t>(((kv_begin + token) * groups + group) * dim)];
            const bool hidden = job.causal && token > t;
            // The scale comes after the mask.
            p.push_back((hidden ? kLowest
                                : dot(&query[static_cast<std::size_t>((row * heads + head) * dim)],
                                      at, dim)) *
                        job.scale);
          }
          const Softmax found = softmax(p);
          std::fill_n(maxima + (row * heads + head) * 8, 8, found.maximum);
          std::fill_n(sums + (row * heads + head) * 8, 8, found.sum);
          put_result(p, values, value_dim, job.query.type, Rounding::kHalfAway,
                     out + (row * heads + head) * value_dim);
        }
      }
    }
  }
}

void check_prefill(const Prefill& job, std::int64_t head_num) {
  const std::vector<std::int64_t>&query = job.query.dims, &key = job.key.dims;
  for (const auto& [argument, name] : {std::pair{&job.query, "query"},
                                       {&job.key, "key"},
                                       {&job.value, "value"},
                                       {&job.topk, "topkIndices"}}) {
    require_rank(*argument, name, 3);
    require_not_empty(*argument, name);
  }
  if (key[2] != query[2] || job.value.dims[2] > query[2]) invalid("D of query and key, Dv <= D");
  if (job.value.dims[0] != key[0] || job.value.dims[1] != key[1]) invalid("key and value differ");
  if (job.lengths.empty() || job.lengths.size() != job.kv_lengths.size())
    tiling("VarLen scene, q is not equal kv");
  if (job.lengths.size() > 1024) tiling("batch size should <= 1024");
  if (head_num != query[1] || query[1] % key[1] != 0)
    tiling("n1Size should be a multiple of n2Size");
  if (job.select < 16 || job.select > 128 || job.select % 16 != 0)
    tiling("selectedBlockSize: 16 to 128 by 16");
  if (job.count < 1 || job.count > 128) tiling("selectedBlockCount: 1 to 128");
  if (std::accumulate(job.lengths.begin(), job.lengths.end(), std::int64_t{0}) > query[0] ||
      std::accumulate(job.kv_lengths.begin(), job.kv_lengths.end(), std::int64_t{0}) > key[0])
    tiling("Query T and key T need be larger than the sums of the lengths");
  // Documented, not checked by the vendor's code:
  if (query[2] != 192 || job.value.dims[2] != 128) invalid("documented: D = 192, Dv = 128");
  if (query[1] > 128 || query[1] / key[1] > 32) invalid("documented: N <= 128, G <= 32");
  if (job.select * job.count >= 8192) invalid("documented: selectedBlockCount * Size < 8192");
  for (std::size_t b = 0; b < job.lengths.size(); ++b)
    if (job.lengths[b] < 1 || job.lengths[b] > 131072 || job.kv_lengths[b] > 131072 ||
        job.kv_lengths[b] < job.select * job.count || job.kv_lengths[b] % job.select != 0)
      invalid("documented: S in 1 .. 128K, S_kv >= selected tokens and a multiple of a block");
  require_dims(job.topk, "topkIndices", {query[0], key[1], job.count});
  require_dims(job.out, "attentionOut", {query[0], query[1], job.value.dims[2]});
  require_dims(job.maxima, "softmaxMaxOut", {query[0], query[1], 8});
  require_dims(job.sums, "softmaxSumOut", {query[0], query[1], 8});
}

// ---------------------------------------------------------------------------------------------------
// Decode

struct Decode {
  aclTensor query, key, value, topk, table, out;
  std::vector<std::int64_t> lengths;
  std::int64_t heads, groups, select, count, page, dim, value_dim;
  float scale;
};

// Tokens that the kernel reads for a sequence, whatever the head of keys: those of head 0.
std::vector<std::int64_t> read_tokens(const Decode& job, const std::int32_t* topk, std::int64_t b) {
  const std::int64_t length = job.lengths[static_cast<std::size_t>(b)];
  const std::int32_t* first_head = topk + b * job.groups * job.count;
  for (std::int64_t i = job.count; i < job.groups * job.count; ++i)
    if (first_head[i] != first_head[i % job.count])
      throw DeviceFault{kFault, "heads choose different blocks: the kernel reads those of head 0"};
  std::vector<std::int64_t> tokens;
  std::set<std::int32_t> seen;
  for (std::int64_t i = 0; i < job.count; ++i) {
    const std::int32_t block = first_head[i];
    if (block == -1) continue;
    if (i > 0 && first_head[i - 1] == -1)
      throw DeviceFault{kFault, "a block behind -1: the kernel never ends"};
    if (!seen.insert(block).second)
      throw DeviceFault{kFault, text("block %d stands twice: the kernel reads it wrongly", block)};
    if (block < -1 || block * job.select >= length)
      throw DeviceFault{kFault, text("block %d of a sequence of %lld tokens", block, ll(length))};
    for (std::int64_t token = block * job.select;
         token < std::min((block + 1) * job.select, length); ++token)
      tokens.push_back(token);
  }
  return tokens;
}

void run_decode(const Decode& job) {
  const std::vector<float> query = floats(job.query, "query"), key = floats(job.key, "key"),
                           value = floats(job.value, "value");
  const std::int32_t *table = indices(job.table, "blockTable"),
                     *topk = indices(job.topk, "topkIndices");
  std::uint16_t* out = mutable_halves(job.out, "output");
  const std::int64_t each = job.heads / job.groups;
  for (std::int64_t b = 0; b < static_cast<std::int64_t>(job.lengths.size()); ++b) {
    std::vector<std::int64_t> rows;
    for (const std::int64_t token : read_tokens(job, topk, b))
      rows.push_back(paged_row(table, job.table.dims[1], job.key.dims[0], job.page, b, token));
    for (std::int64_t head = 0; head < job.heads; ++head) {
      const std::int64_t group = head / each;
      std::vector<float> p;
      std::vector<const float*> values;
      for (const std::int64_t row : rows) {
        const std::int64_t at = row * job.groups + group;
        p.push_back(dot(&query[static_cast<std::size_t>((b * job.heads + head) * job.dim)],
                        &key[static_cast<std::size_t>(at * job.dim)], job.dim) *
                    job.scale);
        values.push_back(&value[static_cast<std::size_t>(at * job.value_dim)]);
      }
      softmax(p);
      put_result(p, values, job.value_dim, job.query.type, Rounding::kNearestEven,
                 out + (b * job.heads + head) * job.value_dim);
    }
  }
}

// The dims of the layout: BSH [B, S, N * D], BSND [B, S, N, D] with 4-D pages, TND [T, N, D].
void read_layout(Decode& job, const char* layout) {
  const std::string name = layout == nullptr ? "" : layout;
  if (name != "BSND" && name != "BSH" && name != "TND") invalid(text("layout %s", name.c_str()));
  const std::size_t rank = name == "BSND" ? 4 : 3;
  require_rank(job.query, "query", rank);
  require_rank(job.key, "key", rank);
  require_rank(job.value, "value", rank);
  if (name != "TND" && job.query.dims[1] != 1)
    throw Refused{ACL_ERROR_API_NOT_SUPPORT, "several query tokens are not simulated"};
  require_rank(job.topk, "topkIndices", name == "TND" ? 3 : 4);
  job.dim = name == "BSH" ? job.query.dims[2] / job.heads : job.query.dims.back();
  const std::int64_t key_dim = name == "BSND" ? job.key.dims[3] : job.key.dims[2] / job.groups;
  job.value_dim = name == "BSND" ? job.value.dims[3] : job.value.dims[2] / job.groups;
  if (job.dim != key_dim || job.value_dim > job.dim) invalid("D of query and key, Dv <= D");
}

void check_decode(Decode& job, const aclIntArray* query_lengths, const char* layout) {
  if (job.heads < 1 || job.groups < 1 || job.heads % job.groups != 0 || job.heads / job.groups > 16)
    throw Refused{ACLNN_ERR_INNER, "numHeads is 1 to 16 times numKeyValueHeads"};
  read_layout(job, layout);
  if (job.dim != 192 || job.value_dim != 128) invalid("QK Head dim must == 192, V Head dim 128");
  const std::int64_t batch = job.query.dims[0];
  const std::vector<std::int64_t>& each = integers(query_lengths, "actualQSeqLen");
  // The tiling reads as many as there are sequences.
  if (static_cast<std::int64_t>(each.size()) < batch) tiling("actualQSeqLen is too short");
  for (const std::int64_t length : each)
    if (length != 1)
      throw Refused{ACL_ERROR_API_NOT_SUPPORT, "several query tokens are not simulated"};
  if (batch < 1 || batch > 3072) tiling("batch size cannot be greater than 3072");
  if (static_cast<std::int64_t>(job.lengths.size()) != batch || job.table.dims[0] != batch)
    tiling("batch of actualKvSeqLen and blockTable");
  if (job.page != 64 && job.page != 128) tiling("blockSize is not 64 or 128");
  if (job.key.dims[1] != job.page || job.value.dims[1] != job.page) invalid("pages of key, value");
  if (job.select < 16 || job.select > 128 || job.select % 16 != 0)
    tiling("selectedBlockSize: 16 to 128 by 16");
  if (job.count < 1 || job.count != job.topk.dims.back()) tiling("selectedBlockCount");
  if (job.groups > 256) tiling("numHead of key and value cannot be greater than 256");
  if (element_count(job.table) == 0) tiling("blockTable shapeSize is zero");
  for (const std::int64_t length : job.lengths) {
    if (length < 1) tiling("actual_q_seq_lengths must be <= actual_kv_seq_lengths");
    if (length > job.table.dims[1] * job.page) tiling("Invalid actual seq length for PA");
  }
  // Documented, not checked by the vendor's code:
  if (job.count * job.select > *std::max_element(job.lengths.begin(), job.lengths.end()))
    invalid("documented: selectBlockCount * selectBlockSize <= MaxKvSeqlen");
}

}  // namespace
}  // namespace nsa_sim

using namespace nsa_sim;

extern "C" {

aclnnStatus aclnnNsaSelectedAttentionGetWorkspaceSize(
    const aclTensor* query, const aclTensor* key, const aclTensor* value,
    const aclTensor* topkIndices, const aclTensor* attenMaskOptional,
    const aclIntArray* actualSeqQLenOptional, const aclIntArray* actualSeqKvLenOptional,
    double scaleValue, int64_t headNum, char* inputLayout, int64_t sparseMode,
    int64_t selectedBlockSize, int64_t selectedBlockCount, const aclTensor* softmaxMaxOut,
    const aclTensor* softmaxSumOut, const aclTensor* attentionOut, uint64_t* workspaceSize,
    aclOpExecutor** executor) {
  return call(__func__, kContext, [&] {
    require_results(workspaceSize, executor);
    const Prefill job{
        tensor(query, "query"),
        tensor(key, "key"),
        tensor(value, "value"),
        tensor(topkIndices, "topkIndices"),
        tensor(softmaxMaxOut, "softmaxMaxOut"),
        tensor(softmaxSumOut, "softmaxSumOut"),
        tensor(attentionOut, "attentionOut"),
        lengths_from(integers(actualSeqQLenOptional, "actualSeqQLen")),
        lengths_from(integers(actualSeqKvLenOptional, "actualSeqKvLen")),
        static_cast<float>(scaleValue),
        selectedBlockSize,
        selectedBlockCount,
        attenMaskOptional != nullptr && sparseMode == 2,
    };
    if (inputLayout == nullptr || std::string(inputLayout) != "TND") invalid("layout is not TND");
    if (sparseMode != 0 && sparseMode != 2) tiling("Sparse Mode: LEFT UP CAUSAL and NO MASK");
    if (attenMaskOptional != nullptr) {
      const aclTensor& mask = tensor(attenMaskOptional, "attenMask");
      if (mask.type != ACL_BOOL && mask.type != ACL_UINT8) tiling("attenMask: bool or uint8");
      if (mask.dims.size() != 2) tiling("atten mask dim should be 2");
    }
    require_one_type(job.query, job.key, job.value, job.out);
    require_type(job.topk, "topkIndices", ACL_INT32);
    require_type(job.maxima, "softmaxMaxOut", ACL_FLOAT);
    require_type(job.sums, "softmaxSumOut", ACL_FLOAT);
    check_prefill(job, headNum);
    std::vector<const aclTensor*> tensors{query,         key,           value,       topkIndices,
                                          softmaxMaxOut, softmaxSumOut, attentionOut};
    if (attenMaskOptional != nullptr) tensors.push_back(attenMaskOptional);
    hand_out(plan("aclnnNsaSelectedAttention", std::move(tensors), [job] { run_prefill(job); }),
             workspaceSize, executor);
  });
}

aclnnStatus aclnnNsaSelectedAttention(void* workspace, uint64_t workspaceSize,
                                      aclOpExecutor* executor, aclrtStream stream) {
  return execute(__func__, workspace, workspaceSize, executor, stream);
}

aclnnStatus aclnnNsaSelectedAttentionInferGetWorkspaceSize(
    const aclTensor* query, const aclTensor* key, const aclTensor* value,
    const aclTensor* topkIndices, const aclTensor*, const aclTensor* blockTableOptional,
    const aclIntArray* actualQSeqLenOptional, const aclIntArray* actualKvSeqLenOptional,
    char* layoutOptional, int64_t numHeads, int64_t numKeyValueHeads, int64_t selectBlockSize,
    int64_t selectBlockCount, int64_t pageBlockSize, double scaleValue, int64_t, aclTensor* output,
    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return call(__func__, kContext, [&] {
    require_results(workspaceSize, executor);
    Decode job{
        tensor(query, "query"),
        tensor(key, "key"),
        tensor(value, "value"),
        tensor(topkIndices, "topkIndices"),
        tensor(blockTableOptional, "blockTable"),
        tensor(output, "output"),
        integers(actualKvSeqLenOptional, "actualKvSeqLen"),
        numHeads,
        numKeyValueHeads,
        selectBlockSize,
        selectBlockCount,
        pageBlockSize,
        0,
        0,
        static_cast<float>(scaleValue),
    };
    require_one_type(job.query, job.key, job.value, job.out);
    require_type(job.topk, "topkIndices", ACL_INT32);
    require_type(job.table, "blockTable", ACL_INT32);
    require_rank(job.table, "blockTable", 2);
    check_decode(job, actualQSeqLenOptional, layoutOptional);
    hand_out(plan("aclnnNsaSelectedAttentionInfer",
                  {query, key, value, topkIndices, blockTableOptional, output},
                  [job] { run_decode(job); }),
             workspaceSize, executor);
  });
}

aclnnStatus aclnnNsaSelectedAttentionInfer(void* workspace, uint64_t workspaceSize,
                                           aclOpExecutor* executor, aclrtStream stream) {
  return execute(__func__, workspace, workspaceSize, executor, stream);
}
}
