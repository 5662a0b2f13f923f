// NsaCompressAttention on an Ascend device by the vendor's operator of the same name.
//
// What only its sources tell (ops-transformer, November 2025 and July 2026): the kernel takes the
// longest sequence's size for the distance of two rows of a mask; the host code reads attributes as
// char, which is signed on x86-64.
#include "device/cann/aclnn.h"

#include <algorithm>
#include <limits>
#include <string>

#include "device/cann/attention.h"
#include "operators/nsa_compress_attention/device.h"

namespace nsa::compress_attention {
namespace {

using namespace cann;

// query, key, value, two masks, ends of query, of compressed tokens, of blocks, scale, heads,
// layout, sparse mode, compress block, stride, select block, count, maxima, sums, output, topk
using AclnnNsaCompressAttention =
    VendorOperator<const aclTensor*, const aclTensor*, const aclTensor*, const aclTensor*,
                   const aclTensor*, const aclIntArray*, const aclIntArray*, const aclIntArray*,
                   double, int64_t, char*, int64_t, int64_t, int64_t, int64_t, int64_t,
                   const aclTensor*, const aclTensor*, const aclTensor*, const aclTensor*>;

const AclnnNsaCompressAttention& Vendor() {
  static const AclnnNsaCompressAttention& vendor =
      *new const AclnnNsaCompressAttention("aclnnNsaCompressAttention");
  return vendor;
}

constexpr spec::AttentionSizes kSizes = spec::kVendorNsaCompressAttention;
constexpr int64_t kMasked = 1;  // its sparse mode; masks may be missing all the same

// An attribute as the vendor's host code reads it.
void RequireChar(const std::string& name, int64_t value) {
  if (value <= std::numeric_limits<char>::max()) return;
  RefuseAttention("reads " + name + " as a char, which is signed on this host, so that " +
                  std::to_string(value) + " is too much");
}

Tensor MakeMask(const char* name, const Mask& mask, int64_t columns) {
  if (mask.data == nullptr) return nullptr;
  if (mask.columns != columns) {
    RefuseAttention(std::string("takes ") + name +
                    " with as many columns as the longest sequence, " + std::to_string(columns) +
                    ", got " + std::to_string(mask.columns));
  }
  return MakeTensor<2>({mask.rows, columns}, kAclBool, mask.data);
}

}  // namespace

void RequireAclnn() { Vendor(); }

void RequireAclnnNode(const Node& node) {
  RequireAttributes(kSizes, node.attributes);
  RequireChar("compress_block_size", *node.attributes.block);
  RequireChar("select_block_size", node.attributes.select_block);
}

void LaunchAclnn(const Run& run, device::Launch& launch) {
  const AttentionAttributes& attributes = *run.attributes;
  RequireDims(kSizes, run.query_dims[1], run.key_dims[1], run.query_dims[2], run.value_dim);
  KeySequences found;
  std::vector<int64_t> query_ends, key_ends, block_ends;
  int64_t blocks = 0;
  for (const Sequence& sequence : *run.sequences) {
    found.tokens.push_back(sequence.tokens);
    found.blocks.push_back(sequence.blocks);
    query_ends.push_back(sequence.first_row + sequence.rows);
    key_ends.push_back(sequence.first_token + sequence.tokens);
    block_ends.push_back(blocks += sequence.blocks);
  }
  RequireKeySequences(kSizes, "actual_cmp_seq_kvlen", found, attributes.select_count);

  const int64_t rows = run.query_dims[0], heads = run.query_dims[1], key_heads = run.key_dims[1];
  const DataType type = AclType(run.dtype);
  const Tensor query = MakeTensor<3>(run.query_dims, type, run.query);
  const Tensor key = MakeTensor<3>(run.key_dims, type, run.key);
  const Tensor value = MakeTensor<3>({run.key_dims[0], key_heads, run.value_dim}, type, run.value);
  const Tensor atten_mask = MakeMask("atten_mask", run.atten_mask,
                                     *std::max_element(found.tokens.begin(), found.tokens.end()));
  const Tensor topk_mask = MakeMask("topk_mask", run.topk_mask,
                                    *std::max_element(found.blocks.begin(), found.blocks.end()));
  const Tensor output = MakeTensor<3>({rows, heads, run.value_dim}, type, run.output);
  const Tensor topk =
      MakeTensor<3>({rows, key_heads, attributes.select_count}, kAclInt32, run.topk_indices);
  const SoftmaxOutputs softmax(launch, rows, heads);
  const IntArray queries = MakeIntArray(query_ends), keys = MakeIntArray(key_ends),
                 selected = MakeIntArray(block_ends);
  Vendor().Start(
      launch, Vendor().Prepare(launch, query.get(), key.get(), value.get(), atten_mask.get(),
                               topk_mask.get(), queries.get(), keys.get(), selected.get(),
                               attributes.scale, heads, TndLayout(), kMasked, *attributes.block,
                               *attributes.stride, attributes.select_block, attributes.select_count,
                               softmax.maxima(), softmax.sums(), output.get(), topk.get()));
}

}  // namespace nsa::compress_attention
