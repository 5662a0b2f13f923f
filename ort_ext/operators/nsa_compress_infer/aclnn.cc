// NsaCompressInfer on an Ascend device by the vendor's operator NsaCompressWithCache.
//
// The limits are those that the vendor documents or checks, and two that only its sources
// (ops-transformer) tell:
//   - At most kMaxSequences of a call may write: an end mark needs the room of one more.
//   - Elements are counted in 32 bits, in sources of November 2025, though not in those of July
//   2026.
//     A CANN does not say which it was made of, so the narrower limit holds.
// The newer ones also refuse empty inputs; LaunchAclnn is never called with any (device.h).
#include "device/cann/aclnn.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "operators/nsa_compress_infer/device.h"

namespace nsa::compress_decode {
namespace {

using namespace cann;

// input, weight, slots, lengths, block table, layout, block, stride, kind of lengths, page, cache
using AclnnNsaCompressWithCache =
    VendorOperator<const aclTensor*, const aclTensor*, const aclTensor*, const aclIntArray*,
                   const aclTensor*, char*, int64_t, int64_t, int64_t, int64_t, aclTensor*>;

const AclnnNsaCompressWithCache& Vendor() {
  static const AclnnNsaCompressWithCache& vendor =
      *new const AclnnNsaCompressWithCache("aclnnNsaCompressWithCache");
  return vendor;
}

constexpr size_t kMaxSequences = static_cast<size_t>(spec::kVendorDecodeMaxBatch);
// See VendorCall: not the node's.
constexpr int64_t kDecodeStride = 16;

// Some of the sequences that write, as the operator wants them: slots, lengths, pages.
//
// Every sequence is given as if it began with the first page of its window. The table then has as
// many columns as a window has pages, whatever the sequences' lengths. A length shortened by whole
// pages need not fit the node's stride any more; but block, stride and page are multiples of 16, so
// it fits a stride of 16, and that it fits is all that the operator wants to know of the stride.
class VendorCall {
 public:
  VendorCall(const SlotWrite* begin, const SlotWrite* end, int64_t block)
      : sequences_(static_cast<size_t>(end - begin)) {
    int64_t columns = 0;
    for (const SlotWrite* write = begin; write != end; ++write) {
      slots_and_table_.push_back(static_cast<int32_t>(write->slot));
      lengths_.push_back(write->runs[0].offset + block);
      columns = std::max(columns, write->run_count);
    }
    for (const SlotWrite* write = begin; write != end; ++write) {
      for (int64_t column = 0; column < columns; ++column) {
        // A window with fewer pages repeats its last one: not read, but no wild number either.
        const int64_t page = write->runs[std::min(column, write->run_count - 1)].page;
        slots_and_table_.push_back(static_cast<int32_t>(page));
      }
    }
    columns_ = columns;
  }

  void Put(const Run& run, device::Launch& launch) const {
    const DataType type = AclType(run.dtype);
    const auto count = static_cast<int64_t>(sequences_);
    const auto* slots_on_device = static_cast<const int32_t*>(
        launch.Upload(slots_and_table_.data(), slots_and_table_.size() * sizeof(int32_t)));
    const Tensor input =
        MakeTensor<4>({run.block_num, run.page, run.heads, run.dim}, type, run.input);
    const Tensor weight = MakeTensor<2>({run.block, run.heads}, type, run.weight);
    const Tensor slots = MakeTensor<1>({count}, kAclInt32, slots_on_device);
    const Tensor table = MakeTensor<2>({count, columns_}, kAclInt32, slots_on_device + sequences_);
    const Tensor cache = MakeTensor<3>({run.slots, run.heads, run.dim}, type, run.cache);
    const IntArray lengths = MakeIntArray(lengths_.data(), count);
    auto prepared =
        Vendor().Prepare(launch, input.get(), weight.get(), slots.get(), lengths.get(), table.get(),
                         TndLayout(), run.block, kDecodeStride, kLengths, run.page, cache.get());
    run.cache_touched = true;
    Vendor().Start(launch, std::move(prepared));
  }

 private:
  size_t sequences_;
  int64_t columns_;
  std::vector<int32_t> slots_and_table_;
  std::vector<int64_t> lengths_;
};

}  // namespace

void RequireAclnn() { Vendor(); }

void RequireAclnnNode(const Node& node) {
  if (node.block <= spec::kVendorDecodeMaxBlock) return;
  RefuseAclnn("compresses into a cache with compress_block_size <= " +
              std::to_string(spec::kVendorDecodeMaxBlock) + ", got " + std::to_string(node.block));
}

void LaunchAclnn(const Run& run, device::Launch& launch) {
  if (run.heads > spec::kVendorDecodeMaxOddHeads && run.heads % 2 != 0) {
    RefuseAclnn("needs an even number of heads above " +
                std::to_string(spec::kVendorDecodeMaxOddHeads) + ", got " +
                std::to_string(run.heads));
  }
  const std::vector<SlotWrite>& plan = *run.plan;
  for (const SlotWrite& write : plan) {
    RequireCountable("cache up to the written slot", write.slot + 1, run.heads * run.dim);
  }
  for (size_t first = 0; first < plan.size(); first += kMaxSequences) {
    const size_t last = std::min(plan.size(), first + kMaxSequences);
    VendorCall(plan.data() + first, plan.data() + last, run.block).Put(run, launch);
  }
}

}  // namespace nsa::compress_decode
