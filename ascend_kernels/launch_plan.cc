// The functions of launch.h that run on the host and are the same for every operator.
#include "launch.h"
#include "plan_layout.h"

int32_t nsa_ascend_abi(void) { return NSA_ASCEND_ABI; }

int64_t nsa_ascend_plan_blocks(const int64_t* plan) { return plan[nsa_ascend::kPlanBlocks]; }
