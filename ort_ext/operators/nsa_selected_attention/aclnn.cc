// NsaSelectedAttention on an Ascend device by the vendor's operator of the same name.
//
// What only its kernel tells (ops-transformer, November 2025 and July 2026): every row reads k
// whole blocks, so there is no -1, and no sequence ends within a block; with a mask, which is never
// read, the row's own block is cut behind the row, and the lowest float32 is put there before the
// logits are multiplied by the scale.
#include "device/cann/aclnn.h"

#include <string>

#include "device/cann/attention.h"
#include "operators/nsa_selected_attention/device.h"

namespace nsa::selected_attention {
namespace {

using namespace cann;

// query, key, value, topk_indices, mask, ends of query, ends of key, scale, heads, layout, sparse
// mode, block size, block count, maxima, sums, output
using AclnnNsaSelectedAttention =
    VendorOperator<const aclTensor*, const aclTensor*, const aclTensor*, const aclTensor*,
                   const aclTensor*, const aclIntArray*, const aclIntArray*, double, int64_t, char*,
                   int64_t, int64_t, int64_t, const aclTensor*, const aclTensor*, const aclTensor*>;

const AclnnNsaSelectedAttention& Vendor() {
  static const AclnnNsaSelectedAttention& vendor =
      *new const AclnnNsaSelectedAttention("aclnnNsaSelectedAttention");
  return vendor;
}

constexpr spec::AttentionSizes kSizes = spec::kVendorNsaSelectedAttention;
constexpr int64_t kCausal = 2;  // its sparse mode; without a mask it has no effect

void RequireSequences(const Run& run) {
  KeySequences keys;
  const int64_t size = run.attributes->select_block;
  for (size_t b = 0; b < run.sequences->size(); ++b) {
    const Sequence& sequence = (*run.sequences)[b];
    keys.tokens.push_back(sequence.tokens);
    keys.blocks.push_back(sequence.tokens / size);
    const std::string which = "sequence " + std::to_string(b) + " has ";
    if (sequence.rows < 1 || sequence.rows > kSizes.tokens) {
      RefuseAttention("takes sequences of 1 to " + std::to_string(kSizes.tokens) +
                      " tokens, actual_seq_qlen: " + which + std::to_string(sequence.rows));
    }
    if (sequence.tokens % size != 0) {
      RefuseAttention("takes sequences of whole blocks of " + std::to_string(size) +
                      " tokens, actual_seq_kvlen: " + which + std::to_string(sequence.tokens));
    }
  }
  RequireKeySequences(kSizes, "actual_seq_kvlen", keys, run.attributes->select_count);
}

void RequireBlocks(const Run& run) {
  const int64_t count = run.attributes->select_count, heads = run.key_dims[1];
  for (size_t i = 0; i < run.blocks->size(); ++i) {
    if ((*run.blocks)[i] >= 0) continue;
    const auto at = static_cast<int64_t>(i);
    RefuseAttention("reads select_block_count blocks of every row, topk_indices[" +
                    std::to_string(at / count / heads) + ", " + std::to_string(at / count % heads) +
                    ", " + std::to_string(at % count) + "] is -1");
  }
}

}  // namespace

void RequireAclnn() { Vendor(); }

void RequireAclnnNode(const Node& node) {
  RequireAttributes(kSizes, node.attributes);
  const double scale = node.attributes.scale;
  if (*node.attributes.causal != 0 && !(scale > 0 && scale <= spec::kVendorMaxCausalScale)) {
    RefuseAttention("takes 0 < scale_value <= " + std::to_string(spec::kVendorMaxCausalScale) +
                    " with causal, got " + std::to_string(scale));
  }
}

void LaunchAclnn(const Run& run, device::Launch& launch) {
  RequireDims(kSizes, run.query_dims[1], run.key_dims[1], run.query_dims[2], run.value_dim);
  RequireSequences(run);
  RequireBlocks(run);

  const int64_t rows = run.query_dims[0], heads = run.query_dims[1],
                count = run.attributes->select_count;
  const DataType type = AclType(run.dtype);
  const Tensor query = MakeTensor<3>(run.query_dims, type, run.query);
  const Tensor key = MakeTensor<3>(run.key_dims, type, run.key);
  const Tensor value =
      MakeTensor<3>({run.key_dims[0], run.key_dims[1], run.value_dim}, type, run.value);
  const Tensor topk = MakeTensor<3>({rows, run.key_dims[1], count}, kAclInt32, run.topk_indices);
  const Tensor output = MakeTensor<3>({rows, heads, run.value_dim}, type, run.output);
  Tensor mask;
  if (*run.attributes->causal != 0) mask = MakeTensor<2>({1, 1}, kAclBool, launch.Scratch(1));
  const SoftmaxOutputs softmax(launch, rows, heads);
  std::vector<int64_t> query_ends, key_ends;
  for (const Sequence& sequence : *run.sequences) {
    query_ends.push_back(sequence.first_row + sequence.rows);
    key_ends.push_back(sequence.first_token + sequence.tokens);
  }
  const IntArray queries = MakeIntArray(query_ends), keys = MakeIntArray(key_ends);
  Vendor().Start(
      launch, Vendor().Prepare(launch, query.get(), key.get(), value.get(), topk.get(), mask.get(),
                               queries.get(), keys.get(), run.attributes->scale, heads, TndLayout(),
                               kCausal, run.attributes->select_block, count, softmax.maxima(),
                               softmax.sums(), output.get()));
}

}  // namespace nsa::selected_attention
