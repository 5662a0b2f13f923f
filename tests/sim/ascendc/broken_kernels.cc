// Tiny kernels, each with one deliberate mistake that the look-alike has to find, and the same
// kernel without it, which has to pass. The line that breaks carries a comment
//     // broken: <kernel> <tensor>      ("-" where no tensor is involved)
// from which tests/test_ascend_kernels.py knows the kernels and what their messages must name.
#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "kernel_operator.h"

namespace {

using namespace AscendC;

constexpr int32_t kElements = 1024;  // of either global tensor

uint8_t source_memory[kElements * 4];
uint8_t target_memory[kElements * 4];

// What most kernels need.
struct Setup {
  TPipe pipe;
  TQue<TPosition::VECIN, 2> in_queue;
  TQue<TPosition::VECOUT, 1> out_queue;
  TBuf<TPosition::VECIN> in_buffer;
  TBuf<TPosition::VECOUT> out_buffer;
  TBuf<TPosition::VECCALC> sums;
  GlobalTensor<float> source, target;

  Setup() {
    source.SetGlobalBuffer(reinterpret_cast<float*>(source_memory), kElements);
    target.SetGlobalBuffer(reinterpret_cast<float*>(target_memory), kElements);
    pipe.InitBuffer(in_queue, 2, 1024);
    pipe.InitBuffer(out_queue, 1, 1024);
    pipe.InitBuffer(in_buffer, 4096);
    pipe.InitBuffer(out_buffer, 4096);
    pipe.InitBuffer(sums, 4096);
  }
};

DataCopyExtParams Bytes(int64_t bytes) { return {1, bytes, 0, 0, 0}; }
const DataCopyPadExtParams<float> kNoPadding;

template <HardEvent event>
void Sync() {
  SetFlag<event>(0);
  WaitFlag<event>(0);
}

// ---- limits of the hardware

template <bool kBroken>
void capacity() {
  TPipe pipe;
  TBuf<TPosition::VECCALC> large, small;
  pipe.InitBuffer(large, 192 * 1024 - 256 - 32);
  // broken: capacity small
  pipe.InitBuffer(small, kBroken ? 64 : 32);
}

template <bool kBroken>
void alignment() {
  Setup s;
  const auto sums = s.sums.Get<float>();
  // broken: alignment sums
  Duplicate(sums[kBroken ? 4 : 8], 1.0f, 64);
}

template <bool kBroken>
void repeat_limit() {
  Setup s;
  const auto sums = s.sums.Get<float>();
  Duplicate(sums, 1.0f, 1024);
  PipeBarrier<PIPE_V>();
  const auto in = s.sums.Get<float>()[512];
  // broken: repeat_limit sums
  Axpy(sums, in, 1.0f, 8, kBroken ? 256 : 32, UnaryRepeatParams(1, 1, 1, 0));
}

template <bool kBroken>
void mask_limit() {
  Setup s;
  const auto sums = s.sums.Get<float>();
  Duplicate(sums, 1.0f, 1024);
  PipeBarrier<PIPE_V>();
  // broken: mask_limit sums
  Axpy(sums, sums[512], 1.0f, kBroken ? 65 : 64, 1, UnaryRepeatParams(1, 1, 8, 8));
}

template <bool kBroken>
void mask_zero() {
  Setup s;
  const auto sums = s.sums.Get<float>();
  Duplicate(sums, 1.0f, 1024);
  PipeBarrier<PIPE_V>();
  // broken: mask_zero sums
  Axpy(sums, sums[512], 1.0f, kBroken ? 0 : 1, 1, UnaryRepeatParams(1, 1, 8, 8));
}

template <bool kBroken>
void repeat_stride() {
  Setup s;
  const auto sums = s.sums.Get<float>();
  Duplicate(sums, 1.0f, 1024);
  PipeBarrier<PIPE_V>();
  const int32_t stride = kBroken ? 256 : 8;  // as uint8_t it would be 0
  // broken: repeat_stride sums
  Axpy(sums, sums[512], 1.0f, 64, 1, UnaryRepeatParams(1, 1, 8, stride));
}

template <bool kBroken>
void burst_stride() {
  Setup s;
  const int64_t gap = kBroken ? 65536 : 1;
  // broken: burst_stride in_buffer
  DataCopy(s.in_buffer.Get<float>(), s.source, DataCopyParams(2, 1, gap, 0));
}

template <bool kBroken>
void burst_count() {
  Setup s;
  const DataCopyExtParams params(kBroken ? 4096 : 1, 32, 0, 0, 0);
  // broken: burst_count in_buffer
  DataCopyPad(s.in_buffer.Get<float>(), s.source, params, kNoPadding);
}

template <bool kBroken>
void place() {
  Setup s;
  const auto local = kBroken ? s.sums.Get<float>() : s.in_buffer.Get<float>();
  // broken: place sums
  DataCopyPad(local, s.source, Bytes(64), kNoPadding);
}

template <bool kBroken>
void rounding_mode() {
  Setup s;
  Duplicate(s.sums.Get<float>(), 1.0f, 64);
  PipeBarrier<PIPE_V>();
  const RoundMode mode = kBroken ? RoundMode::CAST_ROUND : RoundMode::CAST_RINT;
  // broken: rounding_mode out_buffer
  Cast(s.out_buffer.Get<half>(), s.sums.Get<float>(), mode, 64);
}

// ---- memory

template <bool kBroken>
void unwritten() {
  Setup s;
  const auto sums = s.sums.Get<float>();
  Duplicate(sums, 1.0f, kBroken ? 63 : 64);
  PipeBarrier<PIPE_V>();
  // broken: unwritten sums
  Muls(s.out_buffer.Get<float>(), sums, 2.0f, 64);
}

template <bool kBroken>
void unwritten_padding() {
  Setup s;
  const auto in = s.in_buffer.Get<float>();
  DataCopyPad(in, s.source, Bytes(4), DataCopyPadExtParams<float>(!kBroken, 0, 7, 0.0f));
  Sync<HardEvent::MTE2_V>();
  // broken: unwritten_padding in_buffer
  Muls(s.sums.Get<float>(), in, 2.0f, 8);
}

template <bool kBroken>
void stale_queue_buffer() {  // what a queue's buffer held before is gone
  Setup s;
  for (int round = 0; round < 3; ++round) {
    auto in = s.in_queue.AllocTensor<float>();
    if (!kBroken || round < 2) DataCopyPad(in, s.source, Bytes(256), kNoPadding);
    s.in_queue.EnQue(in);
    in = s.in_queue.DeQue<float>();
    PipeBarrier<PIPE_V>();
    // broken: stale_queue_buffer in_queue
    Muls(s.sums.Get<float>(), in, 2.0f, 64);
    s.in_queue.FreeTensor(in);
  }
}

template <bool kBroken>
void buffer_bounds() {
  Setup s;
  // broken: buffer_bounds sums
  Duplicate(s.sums.Get<float>()[1024 - 64], 1.0f, kBroken ? 65 : 64);
}

template <bool kBroken>
void overlap() {  // a repeat reads what the repeat before has written
  Setup s;
  const auto sums = s.sums.Get<float>();
  Duplicate(sums, 1.0f, 1024);
  PipeBarrier<PIPE_V>();
  // broken: overlap sums
  Muls(sums[64], sums[kBroken ? 0 : 64], 2.0f, 128);
}

template <bool kBroken>
void global_bounds() {
  Setup s;
  const auto tail = s.source[kElements - 8];
  // broken: global_bounds source
  DataCopyPad(s.in_buffer.Get<float>(), tail, Bytes(kBroken ? 36 : 32), kNoPadding);
}

template <bool kBroken>
void global_memory() {  // SetGlobalBuffer was told too much
  Setup s;
  GlobalTensor<float> wide;
  wide.SetGlobalBuffer(reinterpret_cast<float*>(source_memory), 2 * kElements);
  const auto tail = wide[kElements - 8];
  // broken: global_memory wide
  DataCopyPad(s.in_buffer.Get<float>(), tail, Bytes(kBroken ? 64 : 32), kNoPadding);
}

template <bool kBroken>
void scalar_global_bounds() {
  Setup s;
  // broken: scalar_global_bounds source
  (void)s.source.GetValue(kBroken ? kElements : kElements - 1);
}

void Fill(Setup& s) {
  Duplicate(s.out_buffer.Get<float>(), 1.0f, 64);
  Sync<HardEvent::V_MTE3>();
}

template <bool kBroken>
void writes_input() {
  Setup s;
  Fill(s);
  const auto to = (kBroken ? s.source : s.target)[GetBlockIdx() * 64];
  // broken: writes_input source
  DataCopyPad(to, s.out_buffer.Get<float>(), Bytes(256));
}

template <bool kBroken>
void two_writers() {
  Setup s;
  Fill(s);
  const auto to = s.target[kBroken ? 0 : GetBlockIdx() * 64];
  // broken: two_writers target
  DataCopyPad(to, s.out_buffer.Get<float>(), Bytes(256));
}

template <bool kBroken>
void reads_output() {
  Setup s;
  Fill(s);
  DataCopyPad(s.target[GetBlockIdx() * 64], s.out_buffer.Get<float>(), Bytes(256));
  const auto from = kBroken ? s.target : s.source;
  // broken: reads_output target
  DataCopyPad(s.in_buffer.Get<float>(), from, Bytes(32), kNoPadding);
}

// ---- queues

template <bool kBroken>
void alloc_too_many() {
  Setup s;
  auto a = s.in_queue.AllocTensor<float>();
  auto b = s.in_queue.AllocTensor<float>();
  if (!kBroken) s.in_queue.FreeTensor(a);
  // broken: alloc_too_many in_queue
  auto c = s.in_queue.AllocTensor<float>();
  s.in_queue.FreeTensor(b);
  s.in_queue.FreeTensor(c);
}

template <bool kBroken>
void queue_depth() {
  Setup s;
  TQue<TPosition::VECIN, 1> shallow;
  s.pipe.InitBuffer(shallow, 2, 256);
  auto a = shallow.AllocTensor<float>();
  auto b = shallow.AllocTensor<float>();
  shallow.EnQue(a);
  if (!kBroken) a = shallow.DeQue<float>();
  // broken: queue_depth shallow
  shallow.EnQue(b);
  b = shallow.DeQue<float>();
  shallow.FreeTensor(a);
  shallow.FreeTensor(b);
}

template <bool kBroken>
void dequeue_empty() {
  Setup s;
  auto a = s.in_queue.AllocTensor<float>();
  if (!kBroken) s.in_queue.EnQue(a);
  // broken: dequeue_empty in_queue
  a = s.in_queue.DeQue<float>();
  s.in_queue.FreeTensor(a);
}

template <bool kBroken>
void enqueue_twice() {
  Setup s;
  auto a = s.in_queue.AllocTensor<float>();
  s.in_queue.EnQue(a);
  // broken: enqueue_twice in_queue
  if (kBroken) s.in_queue.EnQue(a);
  a = s.in_queue.DeQue<float>();
  s.in_queue.FreeTensor(a);
}

template <bool kBroken>
void free_twice() {
  Setup s;
  auto a = s.in_queue.AllocTensor<float>();
  s.in_queue.FreeTensor(a);
  // broken: free_twice in_queue
  if (kBroken) s.in_queue.FreeTensor(a);
}

template <bool kBroken>
void foreign_tensor() {
  Setup s;
  auto a = s.in_queue.AllocTensor<float>();
  auto b = s.sums.Get<float>();
  // broken: foreign_tensor sums
  s.in_queue.FreeTensor(kBroken ? b : a);
}

template <bool kBroken>
void not_freed() {
  TPipe pipe;
  TQue<TPosition::VECIN, 1> leaking;
  // broken: not_freed leaking
  pipe.InitBuffer(leaking, 1, 256);
  auto a = leaking.AllocTensor<float>();
  if (!kBroken) leaking.FreeTensor(a);
}

// ---- synchronization

template <bool kBroken>
void vector_read_after_write() {
  Setup s;
  Duplicate(s.sums.Get<float>(), 1.0f, 64);
  if (!kBroken) PipeBarrier<PIPE_V>();
  // broken: vector_read_after_write sums
  Muls(s.out_buffer.Get<float>(), s.sums.Get<float>(), 2.0f, 64);
}

template <bool kBroken>
void vector_write_after_read() {
  Setup s;
  Duplicate(s.sums.Get<float>(), 1.0f, 64);
  PipeBarrier<PIPE_V>();
  Muls(s.out_buffer.Get<float>(), s.sums.Get<float>(), 2.0f, 64);
  if (!kBroken) PipeBarrier<PIPE_V>();
  // broken: vector_write_after_read sums
  Duplicate(s.sums.Get<float>(), 3.0f, 64);
}

template <bool kBroken>
void vector_write_after_write() {
  Setup s;
  Duplicate(s.sums.Get<float>(), 1.0f, 64);
  if (!kBroken) PipeBarrier<PIPE_V>();
  // broken: vector_write_after_write sums
  Duplicate(s.sums.Get<float>()[32], 2.0f, 64);
}

template <bool kBroken>
void copy_to_vector() {
  Setup s;
  DataCopyPad(s.in_buffer.Get<float>(), s.source, Bytes(256), kNoPadding);
  if (!kBroken) Sync<HardEvent::MTE2_V>();
  // broken: copy_to_vector in_buffer
  Muls(s.sums.Get<float>(), s.in_buffer.Get<float>(), 2.0f, 64);
}

template <bool kBroken>
void barrier_is_no_flag() {  // PipeBarrier<PIPE_V> says nothing about MTE2
  Setup s;
  DataCopyPad(s.in_buffer.Get<float>(), s.source, Bytes(256), kNoPadding);
  if (kBroken) PipeBarrier<PIPE_V>();
  if (!kBroken) PipeBarrier<PIPE_ALL>();
  // broken: barrier_is_no_flag in_buffer
  Muls(s.sums.Get<float>(), s.in_buffer.Get<float>(), 2.0f, 64);
}

template <bool kBroken>
void flag_too_early() {
  Setup s;
  if (kBroken) SetFlag<HardEvent::MTE2_V>(0);
  DataCopyPad(s.in_buffer.Get<float>(), s.source, Bytes(256), kNoPadding);
  if (!kBroken) SetFlag<HardEvent::MTE2_V>(0);
  WaitFlag<HardEvent::MTE2_V>(0);
  // broken: flag_too_early in_buffer
  Muls(s.sums.Get<float>(), s.in_buffer.Get<float>(), 2.0f, 64);
}

template <bool kBroken>
void vector_to_copy() {
  Setup s;
  Duplicate(s.out_buffer.Get<float>(), 1.0f, 64);
  if (!kBroken) Sync<HardEvent::V_MTE3>();
  // broken: vector_to_copy out_buffer
  DataCopyPad(s.target[GetBlockIdx() * 64], s.out_buffer.Get<float>(), Bytes(256));
}

template <bool kBroken>
void copy_out_then_write() {
  Setup s;
  Fill(s);
  DataCopyPad(s.target[GetBlockIdx() * 64], s.out_buffer.Get<float>(), Bytes(256));
  if (!kBroken) Sync<HardEvent::MTE3_V>();
  // broken: copy_out_then_write out_buffer
  Duplicate(s.out_buffer.Get<float>(), 2.0f, 64);
}

template <bool kBroken>
void vector_then_copy_in() {
  Setup s;
  DataCopyPad(s.in_buffer.Get<float>(), s.source, Bytes(256), kNoPadding);
  Sync<HardEvent::MTE2_V>();
  Muls(s.sums.Get<float>(), s.in_buffer.Get<float>(), 2.0f, 64);
  if (!kBroken) Sync<HardEvent::V_MTE2>();
  // broken: vector_then_copy_in in_buffer
  DataCopyPad(s.in_buffer.Get<float>(), s.source, Bytes(256), kNoPadding);
}

template <bool kBroken>
void copy_over_copy() {
  Setup s;
  DataCopyPad(s.in_buffer.Get<float>(), s.source, Bytes(256), kNoPadding);
  if (!kBroken) PipeBarrier<PIPE_MTE2>();
  // broken: copy_over_copy in_buffer
  DataCopyPad(s.in_buffer.Get<float>(), s.source[64], Bytes(256), kNoPadding);
}

template <bool kBroken>
void copy_to_scalar() {
  Setup s;
  DataCopyPad(s.in_buffer.Get<float>(), s.source, Bytes(256), kNoPadding);
  if (!kBroken) Sync<HardEvent::MTE2_S>();
  // broken: copy_to_scalar in_buffer
  (void)s.in_buffer.Get<float>().GetValue(3);
}

template <bool kBroken>
void scalar_then_copy_in() {
  Setup s;
  DataCopyPad(s.in_buffer.Get<float>(), s.source, Bytes(256), kNoPadding);
  Sync<HardEvent::MTE2_S>();
  (void)s.in_buffer.Get<float>().GetValue(3);
  if (!kBroken) Sync<HardEvent::S_MTE2>();
  // broken: scalar_then_copy_in in_buffer
  DataCopyPad(s.in_buffer.Get<float>(), s.source, Bytes(256), kNoPadding);
}

template <bool kBroken>
void vector_to_scalar() {
  Setup s;
  Duplicate(s.sums.Get<float>(), 1.0f, 64);
  if (!kBroken) Sync<HardEvent::V_S>();
  // broken: vector_to_scalar sums
  (void)s.sums.Get<float>().GetValue(0);
}

template <bool kBroken>
void scalar_to_vector() {
  Setup s;
  Duplicate(s.sums.Get<float>(), 1.0f, 64);
  Sync<HardEvent::V_S>();
  s.sums.Get<float>().SetValue(0, 5.0f);
  if (!kBroken) Sync<HardEvent::S_V>();
  // broken: scalar_to_vector sums
  Muls(s.out_buffer.Get<float>(), s.sums.Get<float>(), 2.0f, 64);
}

template <bool kBroken>
void wait_without_set() {
  Setup s;
  if (!kBroken) SetFlag<HardEvent::MTE2_V>(1);
  // broken: wait_without_set -
  WaitFlag<HardEvent::MTE2_V>(1);
}

template <bool kBroken>
void set_twice() {
  Setup s;
  SetFlag<HardEvent::MTE2_V>(1);
  if (!kBroken) WaitFlag<HardEvent::MTE2_V>(1);
  // broken: set_twice -
  SetFlag<HardEvent::MTE2_V>(1);
  WaitFlag<HardEvent::MTE2_V>(1);
}

template <bool kBroken>
void set_and_forgotten() {
  Setup s;
  // broken: set_and_forgotten -
  SetFlag<HardEvent::V_MTE3>(2);
  if (!kBroken) WaitFlag<HardEvent::V_MTE3>(2);
}

template <bool kBroken>
void event_id() {
  Setup s;
  // broken: event_id -
  SetFlag<HardEvent::MTE2_V>(kBroken ? 8 : 7);
  WaitFlag<HardEvent::MTE2_V>(7);
}

#define KERNEL(name)                   \
  {                                    \
    #name, { name<true>, name<false> } \
  }

struct Pair {
  void (*broken)();
  void (*repaired)();
};

const std::map<std::string, Pair> kKernels = {KERNEL(capacity),
                                              KERNEL(alignment),
                                              KERNEL(repeat_limit),
                                              KERNEL(mask_limit),
                                              KERNEL(mask_zero),
                                              KERNEL(repeat_stride),
                                              KERNEL(burst_stride),
                                              KERNEL(burst_count),
                                              KERNEL(place),
                                              KERNEL(rounding_mode),
                                              KERNEL(unwritten),
                                              KERNEL(unwritten_padding),
                                              KERNEL(stale_queue_buffer),
                                              KERNEL(buffer_bounds),
                                              KERNEL(overlap),
                                              KERNEL(global_bounds),
                                              KERNEL(global_memory),
                                              KERNEL(scalar_global_bounds),
                                              KERNEL(writes_input),
                                              KERNEL(two_writers),
                                              KERNEL(reads_output),
                                              KERNEL(alloc_too_many),
                                              KERNEL(queue_depth),
                                              KERNEL(dequeue_empty),
                                              KERNEL(enqueue_twice),
                                              KERNEL(free_twice),
                                              KERNEL(foreign_tensor),
                                              KERNEL(not_freed),
                                              KERNEL(vector_read_after_write),
                                              KERNEL(vector_write_after_read),
                                              KERNEL(vector_write_after_write),
                                              KERNEL(copy_to_vector),
                                              KERNEL(barrier_is_no_flag),
                                              KERNEL(flag_too_early),
                                              KERNEL(vector_to_copy),
                                              KERNEL(copy_out_then_write),
                                              KERNEL(vector_then_copy_in),
                                              KERNEL(copy_over_copy),
                                              KERNEL(copy_to_scalar),
                                              KERNEL(scalar_then_copy_in),
                                              KERNEL(vector_to_scalar),
                                              KERNEL(scalar_to_vector),
                                              KERNEL(wait_without_set),
                                              KERNEL(set_twice),
                                              KERNEL(set_and_forgotten),
                                              KERNEL(event_id)};

std::string Run(void (*kernel)()) {
  ascendc_sim::GlobalMemory memory;
  memory.Add({source_memory, sizeof(source_memory), "source", false});
  memory.Add({target_memory, sizeof(target_memory), "target", true});
  try {
    ascendc_sim::Launch(&memory, 2, 0, kernel);
  } catch (const std::exception& problem) {
    return problem.what();
  }
  return "";
}

}  // namespace

// The message of a kernel, "" if it ran; "no such kernel" otherwise. The text lives until the next
// call.
extern "C" __attribute__((visibility("default"))) const char* ascendc_sim_run_broken(
    const char* name, int broken) {
  static std::string message;
  const auto found = kKernels.find(name);
  message = found == kKernels.end() ? "no such kernel"
                                    : Run(broken ? found->second.broken : found->second.repaired);
  return message.c_str();
}
