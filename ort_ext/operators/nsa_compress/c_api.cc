// See c_api.h. The call is checked and planned; then the CPU kernel runs on threads of its own.
#include "operators/nsa_compress/c_api.h"

#include <vector>

#include "c_api/arguments.h"
#include "operators/nsa_compress/kernel.h"

namespace nsa::compress {
namespace {

using c_api::Array;
using c_api::ReadArray;

std::string CheckOutput(const Array& output, const int64_t (&wanted)[3]) {
  if (output.rank != 3) {
    return "output must have rank 3 [T', N, D], got rank " + std::to_string(output.rank);
  }
  for (int axis = 0; axis < 3; ++axis) {
    if (output.dims[axis] != wanted[axis]) {
      return "output.shape[" + std::to_string(axis) + "] must equal " +
             std::to_string(wanted[axis]) + ", got " + std::to_string(output.dims[axis]);
    }
  }
  return {};
}

std::string Run(int dtype, const Array& input, const Array& weight, int64_t block, int64_t stride,
                const int64_t* actual_seq_len, int64_t segments, const Array& output,
                int64_t threads) {
  std::vector<RowRun> plan;
  std::string error =
      MakePlan({input.shape(), weight.shape(), block, stride, actual_seq_len, segments}, &plan);
  if (!error.empty()) return error;
  const int64_t heads = input.dims[1], dim = input.dims[2], rows = PlannedRows(plan);
  error = CheckOutput(output, {rows, heads, dim});
  if (!error.empty()) return error;
  const KernelData data{static_cast<const uint16_t*>(input.data),
                        static_cast<const uint16_t*>(weight.data),
                        static_cast<uint16_t*>(output.data),
                        heads,
                        dim,
                        block,
                        stride,
                        plan.data(),
                        static_cast<int64_t>(plan.size())};
  RunKernel(static_cast<DType>(dtype), data, cpu::OwnThreads(threads));
  return {};
}

}  // namespace
}  // namespace nsa::compress

int nsa_compress(int dtype, const NsaArray* input, const NsaArray* weight,
                 int64_t compress_block_size, int64_t compress_stride,
                 const int64_t* actual_seq_len, int64_t segments, const NsaArray* output,
                 int64_t threads, char* error, int64_t error_size) {
  using namespace nsa;
  using namespace compress;
  return c_api::Guarded(error, error_size, [&] {
    Array x, w, y;
    std::string message =
        c_api::FirstOf({c_api::CheckCommon(dtype, threads, actual_seq_len, segments),
                        ReadArray("input", input, 3, 2, &x), ReadArray("weight", weight, 2, 2, &w),
                        ReadArray("output", output, 3, 2, &y)});
    if (!message.empty()) return message;
    return Run(dtype, x, w, compress_block_size, compress_stride, actual_seq_len, segments, y,
               threads);
  });
}
