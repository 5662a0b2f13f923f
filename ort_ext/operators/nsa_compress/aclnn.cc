// NsaCompress by the vendor's operator.
#include "device/cann/aclnn.h"

#include "operators/nsa_compress/device.h"

namespace nsa::compress {

void LaunchAclnn(const Run& run, device::Launch& launch) {
  using namespace cann;
  RequireCountable("input", run.tokens, run.heads * run.dim);
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
            input.get(), weight.get(), ends.get(), TndLayout(), run.block, run.stride, kPrefixSums,
            output.get(), size, executor);
      },
      "aclnnNsaCompress", operators.aclnnNsaCompress, launch);
}

}  // namespace nsa::compress
