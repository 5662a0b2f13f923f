// nsa_ascend_infer_plan of launch.h: takes the C structs and calls the tiling. Compiled by every
// toolchain.
#include "../launch_plan.h"

#include <cstddef>

#include "launch.h"
#include "plan/nsa_compress_infer.h"
#include "tiling.h"

using nsa::compress_decode::SlotWrite;

static_assert(sizeof(NsaAscendSlotWrite) == sizeof(SlotWrite) &&
                  offsetof(NsaAscendSlotWrite, runs) == offsetof(SlotWrite, runs),
              "NsaAscendSlotWrite is nsa::compress_decode::SlotWrite");

int64_t nsa_ascend_infer_plan(const NsaAscendInfer* call, int64_t cores, int64_t* plan,
                              int64_t capacity) {
  const nsa_ascend::DecodeShape shape{call->pages, call->page,  call->heads,
                                      call->dim,   call->slots, call->block};
  const auto* writes = reinterpret_cast<const SlotWrite*>(call->writes);
  return nsa_ascend::HandOutPlan(cores, plan, capacity, [&](const nsa_ascend::Chip& chip) {
    return nsa_ascend::TileDecode(shape, writes, call->write_count, chip);
  });
}
