// What each operator's launcher for CANN's compiler (8.5 or later) needs: launch_npu.asc in its
// folder, the only file of an operator that knows <<<>>>.
#ifndef NSA_ONNX_ASCEND_KERNELS_LAUNCH_NPU_H_
#define NSA_ONNX_ASCEND_KERNELS_LAUNCH_NPU_H_

#include <cstdint>

#include "acl/acl.h"
#include "kernel_operator.h"

// On the device: a kernel from beginning to end.
template <typename Kernel>
__aicore__ inline void RunOn(GM_ADDR input, GM_ADDR weight, GM_ADDR output, GM_ADDR plan) {
  AscendC::TPipe pipe;
  Kernel kernel(&pipe);
  kernel.Init(input, weight, output, plan);
  kernel.Process();
}

// The thread's last error stays until it is read: an earlier failure, long handled, would be taken
// for the launch's.
inline void ForgetEarlierError() { (void)aclrtGetLastError(ACL_RT_THREAD_LEVEL); }

inline uint8_t* Address(const void* pointer) {
  return static_cast<uint8_t*>(const_cast<void*>(pointer));
}

#endif  // NSA_ONNX_ASCEND_KERNELS_LAUNCH_NPU_H_
