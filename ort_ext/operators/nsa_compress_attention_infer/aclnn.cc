// NsaCompressAttentionInfer on an Ascend device by the vendor's operator of the same name.
//
// Where the call has no mask, its kernel may take the lengths of query and of the tokens before
// compression for those of one (ops-transformer, November 2025 and July 2026). So both are given,
// with values that hide nothing.
#include "device/cann/aclnn.h"

#include <algorithm>
#include <vector>

#include "device/cann/attention.h"
#include "operators/nsa_compress_attention_infer/device.h"

namespace nsa::compress_attention_decode {
namespace {

using namespace cann;

// query, key, value, mask, block table, lengths of query, of compressed tokens, of tokens, mask of
// blocks, heads, heads of key, select block, count, compress block, stride, scale, layout, page,
// sparse mode, output, topk
using AclnnNsaCompressAttentionInfer =
    VendorOperator<const aclTensor*, const aclTensor*, const aclTensor*, const aclTensor*,
                   const aclTensor*, const aclIntArray*, const aclIntArray*, const aclIntArray*,
                   const aclTensor*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, double,
                   char*, int64_t, int64_t, const aclTensor*, const aclTensor*>;

const AclnnNsaCompressAttentionInfer& Vendor() {
  static const AclnnNsaCompressAttentionInfer& vendor =
      *new const AclnnNsaCompressAttentionInfer("aclnnNsaCompressAttentionInfer");
  return vendor;
}

constexpr spec::AttentionSizes kSizes = spec::kVendorNsaCompressAttentionInfer;

// The table of the pages that are read, on the device; columns that a sequence does not need are 0.
const int32_t* UploadTable(const Run& run, int64_t columns, device::Launch& launch) {
  const std::vector<Sequence>& sequences = run.plan->sequences;
  std::vector<int32_t> table(sequences.size() * static_cast<size_t>(columns));
  const int64_t page = *run.attributes->page;
  for (size_t b = 0; b < sequences.size(); ++b) {
    const int64_t count = CountBlocks(sequences[b].tokens, page);
    const int64_t* pages = run.plan->pages.data() + sequences[b].first_page;
    std::transform(pages, pages + count, table.begin() + static_cast<int64_t>(b) * columns,
                   [](int64_t page) { return static_cast<int32_t>(page); });
  }
  return static_cast<const int32_t*>(launch.Upload(table.data(), table.size() * sizeof(int32_t)));
}

}  // namespace

void RequireAclnn() { Vendor(); }

void RequireAclnnNode(const Node& node) { RequireAttributes(kSizes, node.attributes); }

void LaunchAclnn(const Run& run, device::Launch& launch) {
  const AttentionAttributes& attributes = *run.attributes;
  const int64_t batch = run.query_dims[0], heads = attributes.heads, dim = run.query_dims[2];
  const int64_t key_heads = *attributes.kv_heads, page = *attributes.page;
  RequireDims(kSizes, heads, key_heads, dim, run.value_dim);
  KeySequences found;
  std::vector<int64_t> tokens;  // before compression
  for (const Sequence& sequence : run.plan->sequences) {
    found.tokens.push_back(sequence.tokens);
    found.blocks.push_back(sequence.blocks);
    tokens.push_back((sequence.tokens - 1) * *attributes.stride + *attributes.block);
  }
  RequireKeySequences(kSizes, "actual_cmp_seq_kvlen", found, attributes.select_count);

  const int64_t longest = *std::max_element(found.tokens.begin(), found.tokens.end());
  const int64_t columns = CountBlocks(longest, page);
  const DataType type = AclType(run.dtype);
  const Tensor query = MakeTensor<3>(run.query_dims, type, run.query);
  const Tensor key = MakeTensor<3>({run.block_num, page, key_heads * dim}, type, run.key);
  const Tensor value =
      MakeTensor<3>({run.block_num, page, key_heads * run.value_dim}, type, run.value);
  const Tensor table =
      MakeTensor<2>({batch, columns}, kAclInt32, UploadTable(run, columns, launch));
  const Tensor output = MakeTensor<3>({batch, heads, run.value_dim}, type, run.output);
  const Tensor topk =
      MakeTensor<3>({batch, key_heads, attributes.select_count}, kAclInt32, run.topk_indices);
  const IntArray queries = MakeIntArray(std::vector<int64_t>(tokens.size(), 1));
  const IntArray keys = MakeIntArray(found.tokens), all = MakeIntArray(tokens);
  Vendor().Start(
      launch, Vendor().Prepare(launch, query.get(), key.get(), value.get(), nullptr, table.get(),
                               queries.get(), keys.get(), all.get(), nullptr, heads, key_heads,
                               attributes.select_block, attributes.select_count, *attributes.block,
                               *attributes.stride, attributes.scale, TndLayout(), page, kNoMask,
                               output.get(), topk.get()));
}

}  // namespace nsa::compress_attention_decode
