// NsaCompressInfer on the look-alike: nsa_ascend_infer of its launch.h.
#include "nsa_compress_infer/nsa_compress_infer.h"

#include "launch_simulated.h"
#include "nsa_compress_infer/launch.h"

int32_t nsa_ascend_infer(void* stream, int32_t dtype, const void* input, const void* weight,
                         void* cache, const void* plan, int64_t blocks) {
  return ascendc_sim::Submit("nsa_ascend_infer",
                             ascendc_sim::Choose<nsa_ascend::NsaCompressInferKernel>(dtype), stream,
                             input, weight, cache, plan, blocks);
}
