// nsa_ascend_compress_plan of launch.h: takes the C structs and calls the tiling. Compiled by every
// toolchain.
#include "../launch_plan.h"

#include <cstddef>

#include "launch.h"
#include "plan/nsa_compress.h"
#include "tiling.h"

using nsa::compress::RowRun;

static_assert(sizeof(NsaAscendRowRun) == sizeof(RowRun) &&
                  offsetof(NsaAscendRowRun, first_token) == offsetof(RowRun, first_token),
              "NsaAscendRowRun is nsa::compress::RowRun");

int64_t nsa_ascend_compress_plan(const NsaAscendCompress* call, int64_t cores, int64_t* plan,
                                 int64_t capacity) {
  const nsa_ascend::CompressShape shape{call->dtype == NSA_ASCEND_BFLOAT16,
                                        call->tokens,
                                        call->heads,
                                        call->dim,
                                        call->block,
                                        call->stride};
  const auto* runs = reinterpret_cast<const RowRun*>(call->runs);
  return nsa_ascend::HandOutPlan(cores, plan, capacity, [&](const nsa_ascend::Chip& chip) {
    return nsa_ascend::TileCompress(shape, runs, call->run_count, chip);
  });
}
