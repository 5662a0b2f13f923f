// The host half of launch.h: plans. Compiled by every toolchain; launch_npu.asc has the other half
// for CANN's compiler, tests/sim/ascendc/launch_simulated.cc the one for the look-alike.
#include <cstddef>
#include <cstring>
#include <new>
#include <vector>

#include "launch.h"
#include "nsa_compress/tiling.h"
#include "nsa_compress_infer/tiling.h"
#include "plan/nsa_compress.h"
#include "plan/nsa_compress_infer.h"
#include "plan_layout.h"

namespace {

static_assert(sizeof(NsaAscendRowRun) == sizeof(nsa::compress::RowRun) &&
                  offsetof(NsaAscendRowRun, first_token) ==
                      offsetof(nsa::compress::RowRun, first_token),
              "NsaAscendRowRun is nsa::compress::RowRun");
static_assert(sizeof(NsaAscendSlotWrite) == sizeof(nsa::compress_decode::SlotWrite) &&
                  offsetof(NsaAscendSlotWrite, runs) ==
                      offsetof(nsa::compress_decode::SlotWrite, runs),
              "NsaAscendSlotWrite is nsa::compress_decode::SlotWrite");

nsa_ascend::Chip ChipWith(int64_t cores) {
  nsa_ascend::Chip chip;
  chip.cores = cores < 1 ? 1 : cores;
  return chip;
}

int64_t HandOut(const std::vector<int64_t>& words, int64_t* plan, int64_t capacity) {
  const int64_t count = static_cast<int64_t>(words.size());
  if (plan && capacity >= count) std::memcpy(plan, words.data(), words.size() * sizeof(int64_t));
  return count;
}

}  // namespace

extern "C" {

int32_t nsa_ascend_abi(void) { return NSA_ASCEND_ABI; }

int64_t nsa_ascend_compress_plan(const NsaAscendCompress* call, int64_t cores, int64_t* plan,
                                 int64_t capacity) {
  try {
    const nsa_ascend::CompressShape shape{call->dtype == NSA_ASCEND_BFLOAT16,
                                          call->tokens,
                                          call->heads,
                                          call->dim,
                                          call->block,
                                          call->stride};
    const auto* runs = reinterpret_cast<const nsa::compress::RowRun*>(call->runs);
    return HandOut(nsa_ascend::TileCompress(shape, runs, call->run_count, ChipWith(cores)), plan,
                   capacity);
  } catch (const std::bad_alloc&) {
    return -1;
  }
}

int64_t nsa_ascend_infer_plan(const NsaAscendInfer* call, int64_t cores, int64_t* plan,
                              int64_t capacity) {
  try {
    const nsa_ascend::DecodeShape shape{call->pages, call->page,  call->heads,
                                        call->dim,   call->slots, call->block};
    const auto* writes = reinterpret_cast<const nsa::compress_decode::SlotWrite*>(call->writes);
    return HandOut(nsa_ascend::TileDecode(shape, writes, call->write_count, ChipWith(cores)), plan,
                   capacity);
  } catch (const std::bad_alloc&) {
    return -1;
  }
}

int64_t nsa_ascend_plan_blocks(const int64_t* plan) { return plan[nsa_ascend::kPlanBlocks]; }

}  // extern "C"
