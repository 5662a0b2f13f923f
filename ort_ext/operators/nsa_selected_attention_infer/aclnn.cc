// NsaSelectedAttentionInfer on an Ascend device by the vendor's operator of the same name.
//
// What only its kernel tells (ops-transformer, November 2025 and July 2026): for every head of the
// keys it reads the blocks that head 0 has chosen; -1 must stand behind all blocks, or it never
// ends; and it counts on blocks that differ. So where heads choose different blocks, it is called
// once for each head, with that head's blocks, and of each result that head's part is taken.
#include "device/cann/aclnn.h"

#include <algorithm>
#include <string>

#include "device/cann/attention.h"
#include "operators/nsa_selected_attention_infer/device.h"

namespace nsa::selected_attention_decode {
namespace {

using namespace cann;

// query, key, value, topk_indices, mask, block table, lengths of query, lengths of key, layout,
// heads, heads of key, block size, block count, page, scale, sparse mode, output
using AclnnNsaSelectedAttentionInfer =
    VendorOperator<const aclTensor*, const aclTensor*, const aclTensor*, const aclTensor*,
                   const aclTensor*, const aclTensor*, const aclIntArray*, const aclIntArray*,
                   char*, int64_t, int64_t, int64_t, int64_t, int64_t, double, int64_t, aclTensor*>;

const AclnnNsaSelectedAttentionInfer& Vendor() {
  static const AclnnNsaSelectedAttentionInfer& vendor =
      *new const AclnnNsaSelectedAttentionInfer("aclnnNsaSelectedAttentionInfer");
  return vendor;
}

constexpr spec::AttentionSizes kSizes = spec::kVendorNsaSelectedAttentionInfer;

void RequireSequences(const Run& run) {
  KeySequences keys;
  keys.tokens = *run.lengths;
  const int64_t size = run.attributes->select_block, count = run.attributes->select_count;
  // It wants so many blocks of the longest sequence only.
  keys.blocks.assign(keys.tokens.size(), count);
  RequireKeySequences(kSizes, "actual_seq_kvlen", keys, count);
  const int64_t longest = *std::max_element(keys.tokens.begin(), keys.tokens.end());
  if (longest / size >= count) return;
  RefuseAttention("takes select_block_count x select_block_size <= the longest sequence, got " +
                  std::to_string(count) + " x " + std::to_string(size) + " and " +
                  std::to_string(longest) + " tokens");
}

// Of blocks that are known.
void RequireBlocks(const Run& run) {
  const int64_t count = run.attributes->select_count, heads = *run.attributes->kv_heads;
  for (int64_t at = 0; run.topk.on_host != nullptr && at < run.topk.count; ++at) {
    const int64_t i = at % count, row_number = at / count;
    const int32_t* row = run.topk.on_host + (at - i);
    if (row[i] < 0) continue;
    const std::string which = "topk_indices[" + std::to_string(row_number / heads) + ", " +
                              std::to_string(row_number % heads) + ", " + std::to_string(i) +
                              "] is " + std::to_string(row[i]);
    if (i > 0 && row[i - 1] < 0) RefuseAttention("takes -1 behind all blocks only, " + which);
    if (std::find(row, row + i, row[i]) != row + i) {
      RefuseAttention("takes blocks that differ, " + which + " and not the first one");
    }
  }
}

// Whether all heads of the keys choose the same blocks, sequence by sequence.
bool HeadsAgree(const Run& run) {
  const int64_t count = run.attributes->select_count, heads = *run.attributes->kv_heads;
  if (heads == 1) return true;
  if (run.topk.on_host == nullptr) {
    RefuseAttention("reads the blocks of one head of the keys, so N2 = " + std::to_string(heads) +
                    " needs the check of indices on the device");
  }
  for (int64_t at = 0; at < run.topk.count; ++at) {
    const int64_t first = at / (heads * count) * (heads * count) + at % count;
    if (run.topk.on_host[at] != run.topk.on_host[first]) return false;
  }
  return true;
}

// The blocks of one head for all heads, on the device.
const int32_t* UploadBlocks(const Run& run, int64_t head, device::Launch& launch) {
  const int64_t count = run.attributes->select_count, heads = *run.attributes->kv_heads;
  std::vector<int32_t> blocks(static_cast<size_t>(run.topk.count));
  for (int64_t at = 0; at < run.topk.count; ++at) {
    const int64_t sequence = at / (heads * count);
    blocks[static_cast<size_t>(at)] =
        run.topk.on_host[(sequence * heads + head) * count + at % count];
  }
  return static_cast<const int32_t*>(launch.Upload(blocks.data(), blocks.size() * sizeof(int32_t)));
}

// The columns of the table that hold tokens, on the device.
const int32_t* UploadTable(const Run& run, int64_t columns, device::Launch& launch) {
  std::vector<int32_t> table;
  for (size_t b = 0; b < run.lengths->size(); ++b) {
    const int32_t* row = run.block_table + static_cast<int64_t>(b) * run.pages;
    table.insert(table.end(), row, row + columns);
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
  RequireSequences(run);
  RequireBlocks(run);

  const bool agree = HeadsAgree(run);

  const int64_t longest = *std::max_element(run.lengths->begin(), run.lengths->end());
  const int64_t columns = CountBlocks(longest, page);
  const DataType type = AclType(run.dtype);
  const Tensor query = MakeTensor<3>(run.query_dims, type, run.query);
  const Tensor key = MakeTensor<3>({run.block_num, page, key_heads * dim}, type, run.key);
  const Tensor value =
      MakeTensor<3>({run.block_num, page, key_heads * run.value_dim}, type, run.value);
  const Tensor table =
      MakeTensor<2>({batch, columns}, kAclInt32, UploadTable(run, columns, launch));
  const IntArray queries = MakeIntArray(std::vector<int64_t>(run.lengths->size(), 1));
  const IntArray keys = MakeIntArray(*run.lengths);
  const auto put = [&](const int32_t* blocks, void* results) {
    const Tensor topk =
        MakeTensor<3>({batch, key_heads, attributes.select_count}, kAclInt32, blocks);
    const Tensor output = MakeTensor<3>({batch, heads, run.value_dim}, type, results);
    Vendor().Start(
        launch, Vendor().Prepare(launch, query.get(), key.get(), value.get(), topk.get(), nullptr,
                                 table.get(), queries.get(), keys.get(), TndLayout(), heads,
                                 key_heads, attributes.select_block, attributes.select_count, page,
                                 attributes.scale, kNoMask, output.get()));
  };
  if (agree) return put(run.topk.on_device, run.output);
  const int64_t row = heads * run.value_dim * static_cast<int64_t>(sizeof(uint16_t));
  const int64_t part = row / key_heads;
  auto* results = static_cast<std::byte*>(launch.Scratch(static_cast<size_t>(batch * row)));
  for (int64_t head = 0; head < key_heads; ++head) {
    put(UploadBlocks(run, head, launch), results);
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t at = b * row + head * part;
      launch.runtime().CopyOnDevice(static_cast<std::byte*>(run.output) + at, results + at,
                                    static_cast<size_t>(part), launch.stream());
    }
  }
}

}  // namespace nsa::selected_attention_decode
