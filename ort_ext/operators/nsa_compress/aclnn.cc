// NsaCompress on an Ascend device by the vendor's operator of the same name.
#include "device/cann/aclnn.h"

#include "operators/nsa_compress/device.h"

namespace nsa::compress {
namespace {

using namespace cann;

// input, weight, ends of the segments, layout, block, stride, kind of lengths, output
using AclnnNsaCompress = VendorOperator<const aclTensor*, const aclTensor*, const aclIntArray*,
                                        char*, int64_t, int64_t, int64_t, aclTensor*>;

const AclnnNsaCompress& Vendor() {
  static const AclnnNsaCompress& vendor = *new const AclnnNsaCompress("aclnnNsaCompress");
  return vendor;
}

}  // namespace

void RequireAclnn() { Vendor(); }

void LaunchAclnn(const Run& run, device::Launch& launch) {
  RequireCountable("input", run.tokens, run.heads * run.dim);
  const DataType type = AclType(run.dtype);
  const Tensor input = MakeTensor<3>({run.tokens, run.heads, run.dim}, type, run.input);
  const Tensor weight = MakeTensor<2>({run.block, run.heads}, type, run.weight);
  const Tensor output = MakeTensor<3>({run.rows, run.heads, run.dim}, type, run.output);
  const IntArray ends = MakeIntArray(run.actual_seq_len, run.segments);
  Vendor().Start(launch,
                 Vendor().Prepare(launch, input.get(), weight.get(), ends.get(), TndLayout(),
                                  run.block, run.stride, kPrefixSums, output.get()));
}

}  // namespace nsa::compress
