// The aclnn backend: CANN's own operators in their two-step form, within their limits.
//
// The limits are those that the vendor documents or checks, and two that only its sources tell
// (ops-transformer): decode has room for 2048 compressing sequences including an end mark, and
// elements are counted in 32 bits, everywhere in November 2025, in prefill's output offset per core
// still in July 2026. A CANN does not say which it has, so the narrower one holds. Since then
// decode also refuses empty inputs; the backend is never called with any (backend.h).
#include <algorithm>
#include <array>
#include <memory>

#include "cann/backend.h"

namespace nsa::cann {
namespace {

constexpr size_t kMaxSequences = static_cast<size_t>(spec::kVendorDecodeMaxBatch);
// See Decode: not the node's.
constexpr int64_t kDecodeStride = 16;
enum LengthsKind : int64_t { kPrefixSums = 0, kLengths = 1 };

[[noreturn]] void Refuse(const std::string& what) {
  throw CannError("the aclnn backend " + what +
                  ": use the ascend_kernels backend, or device=\"cpu\"");
}

char* Layout() {
  static char layout[] = "TND";  // read only, but the vendor's parameter is not const
  return layout;
}

DataType AclType(cpu::DType dtype) {
  return dtype == cpu::DType::kFloat16 ? kAclFloat16 : kAclBFloat16;
}

// The objects that the operators take; they must live until the second step has been called.

struct DestroyTensor {
  void operator()(const aclTensor* tensor) const {
    Forget(GetOperators().aclDestroyTensor(tensor));
  }
};
using Tensor = std::unique_ptr<aclTensor, DestroyTensor>;

struct DestroyIntArray {
  void operator()(const aclIntArray* array) const {
    Forget(GetOperators().aclDestroyIntArray(array));
  }
};
using IntArray = std::unique_ptr<aclIntArray, DestroyIntArray>;

struct DestroyExecutor {
  void operator()(aclOpExecutor* executor) const {
    Forget(GetOperators().aclDestroyAclOpExecutor(executor));
  }
};
using Executor = std::unique_ptr<aclOpExecutor, DestroyExecutor>;

// A dense tensor on the device. Not const, because the outputs are made here, too.
template <size_t kRank>
Tensor MakeTensor(const std::array<int64_t, kRank>& dims, DataType type, const void* data) {
  std::array<int64_t, kRank> strides;
  int64_t stride = 1;
  for (size_t axis = kRank; axis-- > 0; stride *= dims[axis]) strides[axis] = stride;
  Tensor tensor(GetOperators().aclCreateTensor(dims.data(), kRank, type, strides.data(), 0,
                                               kAclFormatNd, dims.data(), kRank,
                                               const_cast<void*>(data)));
  RequireHandle(tensor.get(), "aclCreateTensor");
  return tensor;
}

IntArray MakeIntArray(const int64_t* values, int64_t size) {
  IntArray array(GetOperators().aclCreateIntArray(values, static_cast<uint64_t>(size)));
  RequireHandle(array.get(), "aclCreateIntArray");
  return array;
}

// Between its two steps an operator asks for a workspace. The second step takes the executor, also
// when it fails; without a second step it is ours to destroy.
template <class First, class Second>
void RunTwoSteps(const char* first_name, First first, const char* second_name, Second second,
                 Launch& launch) {
  uint64_t size = 0;
  aclOpExecutor* prepared = nullptr;
  Require(first(&size, &prepared), first_name);
  Executor executor(prepared);
  void* workspace = size > 0 ? launch.Scratch(size) : nullptr;
  Require(second(workspace, size, executor.release(), launch.stream()), second_name);
}

void Compress(const CompressRun& run, Launch& launch) {
  const Operators& operators = GetOperators();
  const DataType type = AclType(run.dtype);
  const Tensor input = MakeTensor<3>({run.tokens, run.heads, run.dim}, type, run.input);
  const Tensor weight = MakeTensor<2>({run.block, run.heads}, type, run.weight);
  const Tensor output = MakeTensor<3>({run.rows, run.heads, run.dim}, type, run.output);
  const IntArray ends = MakeIntArray(run.actual_seq_len, run.segments);
  RunTwoSteps(
      "aclnnNsaCompressGetWorkspaceSize",
      [&](uint64_t* size, aclOpExecutor** executor) {
        return operators.aclnnNsaCompressGetWorkspaceSize(
            input.get(), weight.get(), ends.get(), Layout(), run.block, run.stride, kPrefixSums,
            output.get(), size, executor);
      },
      "aclnnNsaCompress", operators.aclnnNsaCompress, launch);
}

// Some of the sequences that write, as the operator wants them: slots, lengths, pages.
//
// Every sequence is given as if it began with the first page of its window. The table then has as
// many columns as a window has pages, whatever the sequences' lengths. A length shortened by whole
// pages need not fit the node's stride any more; but block, stride and page are multiples of 16, so
// it fits a stride of 16, and that it fits is all that the operator wants to know of the stride.
class Decode {
 public:
  Decode(const SlotWrite* begin, const SlotWrite* end, int64_t block)
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

  void Run(const InferRun& run, Launch& launch) const {
    const Operators& operators = GetOperators();
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
    RunTwoSteps(
        "aclnnNsaCompressWithCacheGetWorkspaceSize",
        [&](uint64_t* size, aclOpExecutor** executor) {
          return operators.aclnnNsaCompressWithCacheGetWorkspaceSize(
              input.get(), weight.get(), slots.get(), lengths.get(), table.get(), Layout(),
              run.block, kDecodeStride, kLengths, run.page, cache.get(), size, executor);
        },
        "aclnnNsaCompressWithCache",
        [&](void* workspace, uint64_t size, aclOpExecutor* executor, Stream stream) {
          run.cache_touched = true;
          return operators.aclnnNsaCompressWithCache(workspace, size, executor, stream);
        },
        launch);
  }

 private:
  size_t sequences_;
  int64_t columns_;
  std::vector<int32_t> slots_and_table_;
  std::vector<int64_t> lengths_;
};

class AclnnBackend : public Backend {
 public:
  AclnnBackend() {
    GetRuntime();
    GetOperators();
  }

  const char* name() const override { return "aclnn"; }

  void RequireInferBlock(int64_t block) const override {
    if (block <= spec::kVendorDecodeMaxBlock) return;
    Refuse("compresses into a cache with compress_block_size <= " +
           std::to_string(spec::kVendorDecodeMaxBlock) + ", got " + std::to_string(block));
  }

  void Compress(const CompressRun& run, Launch& launch) const override {
    RequireElements("input", run.tokens, run.heads * run.dim);
    cann::Compress(run, launch);
  }

  void Infer(const InferRun& run, Launch& launch) const override {
    if (run.heads > spec::kVendorDecodeMaxOddHeads && run.heads % 2 != 0) {
      Refuse("needs an even number of heads above " +
             std::to_string(spec::kVendorDecodeMaxOddHeads) + ", got " + std::to_string(run.heads));
    }
    const std::vector<SlotWrite>& plan = *run.plan;
    for (const SlotWrite& write : plan) {
      RequireElements("cache up to the written slot", write.slot + 1, run.heads * run.dim);
    }
    for (size_t first = 0; first < plan.size(); first += kMaxSequences) {
      const size_t last = std::min(plan.size(), first + kMaxSequences);
      Decode(plan.data() + first, plan.data() + last, run.block).Run(run, launch);
    }
  }

 private:
  static void RequireElements(const char* what, int64_t rows, int64_t row) {
    if (rows <= spec::kVendorMaxElements / row) return;
    Refuse(std::string("counts elements in 32 bits, ") + what + " has " + std::to_string(rows) +
           " rows of " + std::to_string(row));
  }
};

}  // namespace

const Backend& GetAclnnBackend() {
  static const AclnnBackend backend;
  return backend;
}

}  // namespace nsa::cann
