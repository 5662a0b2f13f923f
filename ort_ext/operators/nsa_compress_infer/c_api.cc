// See c_api.h. The call is checked and planned; then the CPU kernel runs on threads of its own.
#include "operators/nsa_compress_infer/c_api.h"

#include <vector>

#include "c_api/arguments.h"
#include "operators/nsa_compress_infer/kernel.h"

namespace nsa::compress_decode {
namespace {

using c_api::Array;
using c_api::ReadArray;

std::string Run(int dtype, const Call& call, const Array& input, const Array& weight,
                const Array& cache, int64_t threads) {
  std::vector<SlotWrite> plan;
  const std::string error = MakePlan(call, &plan);
  if (!error.empty()) return error;
  const KernelData data{static_cast<const uint16_t*>(input.data),
                        static_cast<const uint16_t*>(weight.data),
                        static_cast<uint16_t*>(cache.data),
                        call.input[2],
                        call.input[3],
                        call.block,
                        call.page,
                        plan.data(),
                        static_cast<int64_t>(plan.size())};
  RunKernel(static_cast<DType>(dtype), data, cpu::OwnThreads(threads));
  return {};
}

}  // namespace
}  // namespace nsa::compress_decode

int nsa_compress_infer(int dtype, const NsaArray* input, const NsaArray* weight,
                       const NsaArray* slot_mapping, int64_t compress_block_size,
                       int64_t compress_stride, int64_t page_block_size,
                       const NsaArray* block_table, const int64_t* actual_seq_len,
                       int64_t sequences, const NsaArray* cache, int64_t threads, char* error,
                       int64_t error_size) {
  using namespace nsa;
  using namespace compress_decode;
  return c_api::Guarded(error, error_size, [&] {
    const bool has_table = block_table != nullptr;
    Array x, w, slots, y, table;
    std::string message = c_api::FirstOf(
        {c_api::CheckCommon(dtype, threads, actual_seq_len, sequences),
         ReadArray("input", input, 4, 2, &x), ReadArray("weight", weight, 2, 2, &w),
         ReadArray("slot_mapping", slot_mapping, 1, 4, &slots), ReadArray("cache", cache, 3, 2, &y),
         has_table ? ReadArray("block_table", block_table, 2, 4, &table) : std::string()});
    if (!message.empty()) return message;
    const Call call{x.shape(),
                    w.shape(),
                    slots.shape(),
                    y.shape(),
                    table.shape(),
                    compress_block_size,
                    compress_stride,
                    page_block_size,
                    static_cast<const int32_t*>(slots.data),
                    static_cast<const int32_t*>(table.data),
                    actual_seq_len,
                    sequences,
                    has_table};
    return Run(dtype, call, x, w, y, threads);
  });
}
