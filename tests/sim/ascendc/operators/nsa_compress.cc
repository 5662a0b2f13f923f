// NsaCompress on the look-alike: nsa_ascend_compress of its launch.h.
#include "nsa_compress/nsa_compress.h"

#include "launch_simulated.h"
#include "nsa_compress/launch.h"

int32_t nsa_ascend_compress(void* stream, int32_t dtype, const void* input, const void* weight,
                            void* output, const void* plan, int64_t blocks) {
  return ascendc_sim::Submit("nsa_ascend_compress",
                             ascendc_sim::Choose<nsa_ascend::NsaCompressKernel>(dtype), stream,
                             input, weight, output, plan, blocks);
}
