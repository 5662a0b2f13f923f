// A look-alike of Ascend C's kernel_operator.h: the subset that ascend_kernels/ uses, for Atlas A2
// (dav-2201), compiled with g++ and checked as it runs.
//
// Names, parameters and their meaning are the vendor's (the API reference of CANN 8.5). What every
// call checks and counts is in README.md. An overload that is missing here does not compile: look
// up what the real one does before adding it.
//
// Longer than other files, because CANN's is one header as well: a kernel includes it by this name.
#ifndef NSA_ONNX_TESTS_SIM_ASCENDC_KERNEL_OPERATOR_H_
#define NSA_ONNX_TESTS_SIM_ASCENDC_KERNEL_OPERATOR_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "float_types.h"
#include "machine.h"

#define __aicore__
#define __gm__
#define __global__
#define __vector__
#define GM_ADDR uint8_t*

// The caller's place, as default arguments: what a message begins with.
#define ASCENDC_SIM_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

enum pipe_t { PIPE_S, PIPE_V, PIPE_MTE2, PIPE_MTE3, PIPE_ALL };

namespace AscendC {

namespace sim = ::ascendc_sim;

using TEventID = int8_t;

enum class TPosition : uint8_t { VECIN, VECOUT, VECCALC };
enum class RoundMode : uint8_t {
  CAST_NONE,
  CAST_RINT,
  CAST_FLOOR,
  CAST_CEIL,
  CAST_ROUND,
  CAST_TRUNC
};
enum class HardEvent : uint8_t {
  MTE2_V,
  V_MTE2,
  V_MTE3,
  MTE3_V,
  MTE2_S,
  S_MTE2,
  V_S,
  S_V,
  MTE3_S,
  S_MTE3,
  MTE3_MTE2
};

namespace detail {

constexpr sim::Pipe Source(HardEvent event) {
  switch (event) {
    case HardEvent::MTE2_V:
    case HardEvent::MTE2_S:
      return sim::Pipe::MTE2;
    case HardEvent::V_MTE2:
    case HardEvent::V_MTE3:
    case HardEvent::V_S:
      return sim::Pipe::V;
    case HardEvent::MTE3_V:
    case HardEvent::MTE3_S:
    case HardEvent::MTE3_MTE2:
      return sim::Pipe::MTE3;
    default:
      return sim::Pipe::S;
  }
}

constexpr sim::Pipe Target(HardEvent event) {
  switch (event) {
    case HardEvent::MTE2_V:
    case HardEvent::MTE3_V:
    case HardEvent::S_V:
      return sim::Pipe::V;
    case HardEvent::V_MTE2:
    case HardEvent::S_MTE2:
    case HardEvent::MTE3_MTE2:
      return sim::Pipe::MTE2;
    case HardEvent::V_MTE3:
    case HardEvent::S_MTE3:
      return sim::Pipe::MTE3;
    default:
      return sim::Pipe::S;
  }
}

// A register field of the hardware: the real API takes a narrow integer and wraps silently. Here
// the value stays whole until an instruction that can name its tensor checks it.
template <typename T>
struct Field {
  int64_t value;
  template <typename I, typename = std::enable_if_t<std::is_integral_v<I>>>
  Field(I wide) : value(static_cast<int64_t>(wide)) {}
  bool fits() const { return value >= 0 && value <= static_cast<int64_t>(T(~T(0))); }
};

}  // namespace detail

struct UnaryRepeatParams {
  detail::Field<uint16_t> dst_blk{1}, src_blk{1};
  detail::Field<uint8_t> dst_rep{8}, src_rep{8};
  UnaryRepeatParams() = default;
  UnaryRepeatParams(detail::Field<uint16_t> dst_block_stride,
                    detail::Field<uint16_t> src_block_stride,
                    detail::Field<uint8_t> dst_repeat_stride,
                    detail::Field<uint8_t> src_repeat_stride)
      : dst_blk(dst_block_stride),
        src_blk(src_block_stride),
        dst_rep(dst_repeat_stride),
        src_rep(src_repeat_stride) {}
};

struct BinaryRepeatParams {
  detail::Field<uint8_t> dst_blk{1}, src0_blk{1}, src1_blk{1}, dst_rep{8}, src0_rep{8}, src1_rep{8};
  BinaryRepeatParams() = default;
  BinaryRepeatParams(detail::Field<uint8_t> dst_block_stride,
                     detail::Field<uint8_t> src0_block_stride,
                     detail::Field<uint8_t> src1_block_stride,
                     detail::Field<uint8_t> dst_repeat_stride,
                     detail::Field<uint8_t> src0_repeat_stride,
                     detail::Field<uint8_t> src1_repeat_stride)
      : dst_blk(dst_block_stride),
        src0_blk(src0_block_stride),
        src1_blk(src1_block_stride),
        dst_rep(dst_repeat_stride),
        src0_rep(src0_repeat_stride),
        src1_rep(src1_repeat_stride) {}
};

struct BrcbRepeatParams {
  detail::Field<uint16_t> dst_blk{1}, dst_rep{8};
  BrcbRepeatParams() = default;
  BrcbRepeatParams(detail::Field<uint16_t> dst_block_stride,
                   detail::Field<uint16_t> dst_repeat_stride)
      : dst_blk(dst_block_stride), dst_rep(dst_repeat_stride) {}
};

// Lengths and gaps: of GM in bytes, of the unified buffer in blocks of 32 bytes.
struct DataCopyExtParams {
  detail::Field<uint16_t> block_count{1};
  detail::Field<uint32_t> block_len{0}, src_stride{0}, dst_stride{0}, rsv{0};
  DataCopyExtParams() = default;
  DataCopyExtParams(detail::Field<uint16_t> count, detail::Field<uint32_t> length,
                    detail::Field<uint32_t> src_gap, detail::Field<uint32_t> dst_gap,
                    detail::Field<uint32_t> reserved)
      : block_count(count),
        block_len(length),
        src_stride(src_gap),
        dst_stride(dst_gap),
        rsv(reserved) {}
};

// Lengths and gaps in blocks of 32 bytes, 16 bits each.
struct DataCopyParams {
  detail::Field<uint16_t> block_count{1}, block_len{0}, src_gap{0}, dst_gap{0};
  DataCopyParams() = default;
  DataCopyParams(detail::Field<uint16_t> count, detail::Field<uint16_t> length,
                 detail::Field<uint16_t> source_gap, detail::Field<uint16_t> target_gap)
      : block_count(count), block_len(length), src_gap(source_gap), dst_gap(target_gap) {}
};

template <typename T>
struct DataCopyPadExtParams {
  bool is_pad = false;
  detail::Field<uint8_t> left_padding{0}, right_padding{0};
  T padding_value{};
  DataCopyPadExtParams() = default;
  DataCopyPadExtParams(bool pad, detail::Field<uint8_t> left, detail::Field<uint8_t> right, T value)
      : is_pad(pad), left_padding(left), right_padding(right), padding_value(value) {}
};

// --------------------------------------------------------------------------------------------------
// Tensors

template <typename T>
class LocalTensor {
 public:
  LocalTensor() = default;
  explicit LocalTensor(const sim::Local& memory) : memory_(memory) {}

  LocalTensor operator[](uint32_t offset) const {
    return LocalTensor(
        {memory_.buffer, memory_.address + offset * static_cast<uint32_t>(sizeof(T))});
  }
  template <typename U>
  LocalTensor<U> ReinterpretCast() const {
    return LocalTensor<U>(memory_);
  }
  T GetValue(uint32_t index, ASCENDC_SIM_HERE) const {
    sim::Machine& machine = sim::Machine::Current();
    const auto instruction = machine.Issue(sim::Pipe::S, "GetValue", {file, line});
    machine.counters().scalar_reads += 1;
    if (memory_.buffer < 0) machine.Fail(instruction, memory_, "is read");
    T value;
    std::memcpy(&value,
                machine.Read(instruction, memory_, memory_.address + index * sizeof(T), sizeof(T)),
                sizeof(T));
    return value;
  }
  void SetValue(uint32_t index, T value, ASCENDC_SIM_HERE) const {
    sim::Machine& machine = sim::Machine::Current();
    const auto instruction = machine.Issue(sim::Pipe::S, "SetValue", {file, line});
    if (memory_.buffer < 0) machine.Fail(instruction, memory_, "is written");
    std::memcpy(machine.Write(instruction, memory_, memory_.address + index * sizeof(T), sizeof(T)),
                &value, sizeof(T));
  }

  const sim::Local& memory() const { return memory_; }

 private:
  sim::Local memory_;
};

template <typename T>
class GlobalTensor {
 public:
  void SetGlobalBuffer(T* buffer, uint64_t elements, ASCENDC_SIM_HERE) {
    base_ = address_ = reinterpret_cast<uint8_t*>(buffer);
    limit_ = elements * sizeof(T);
    declared_ = {file, line};
  }
  GlobalTensor operator[](uint64_t offset) const {
    GlobalTensor part = *this;
    part.address_ += offset * sizeof(T);
    return part;
  }
  T GetValue(uint64_t index, ASCENDC_SIM_HERE) const {
    sim::Machine& machine = sim::Machine::Current();
    const uint8_t* address = address_ + index * sizeof(T);
    const sim::Region& region = Check({file, line}, address, sizeof(T));
    machine.memory().CheckNotWritten(region, address, sizeof(T), {file, line});
    machine.counters().scalar_gm_bytes += sizeof(T);
    T value;
    std::memcpy(&value, address, sizeof(T));
    return value;
  }
  const sim::Region& Check(const sim::Where& where, const uint8_t* address, uint64_t bytes) const {
    return sim::Machine::Current().CheckGlobal(where, declared_, base_, limit_, address, bytes);
  }
  uint8_t* address() const { return address_; }

 private:
  uint8_t* base_ = nullptr;
  uint8_t* address_ = nullptr;
  uint64_t limit_ = 0;
  sim::Where declared_;
};

// --------------------------------------------------------------------------------------------------
// Synchronization

template <pipe_t pipe>
void PipeBarrier() {
  static_assert(pipe != PIPE_S, "PipeBarrier does not take PIPE_S: the scalar unit is in order");
  sim::Machine& machine = sim::Machine::Current();
  if constexpr (pipe == PIPE_ALL) {
    machine.BarrierAll();
  } else {
    machine.Barrier(static_cast<sim::Pipe>(pipe));
  }
}

template <HardEvent event>
void SetFlag(int32_t id, ASCENDC_SIM_HERE) {
  sim::Machine::Current().SetFlag(detail::Source(event), detail::Target(event), id, {file, line});
}

template <HardEvent event>
void WaitFlag(int32_t id, ASCENDC_SIM_HERE) {
  sim::Machine::Current().WaitFlag(detail::Source(event), detail::Target(event), id, {file, line});
}

inline int64_t GetBlockIdx() { return sim::Machine::Current().block(); }
inline int64_t GetBlockNum() { return sim::Machine::Current().blocks(); }

// --------------------------------------------------------------------------------------------------
// Buffers and queues

namespace detail {

constexpr sim::Place PlaceOf(TPosition position) {
  return position == TPosition::VECIN    ? sim::Place::kVecIn
         : position == TPosition::VECOUT ? sim::Place::kVecOut
                                         : sim::Place::kVecCalc;
}

// A queue's buffers and their states. Outlives the queue object, so that a launch can look back at
// it.
struct QueueState {
  enum State { kFree, kOccupied, kEnqueued, kDequeued };
  struct Slot {
    int buffer;
    State state = kFree;
    int enqueued_event = -1;
    int free_event = -1;
  };
  std::vector<Slot> slots;
  std::vector<size_t> waiting;  // indices of slots, first in first out
  size_t cursor = 0;

  static const char* Name(State state) {
    static const char* const kNames[] = {"free", "allocated", "enqueued", "dequeued"};
    return kNames[state];
  }
};

}  // namespace detail

template <TPosition position, int32_t depth>
class TQue {
  static_assert(position == TPosition::VECIN || position == TPosition::VECOUT,
                "a queue of VECIN or VECOUT");
  static_assert(depth >= 1, "in-place queues (depth 0) are not simulated");
  static constexpr HardEvent kEnqueued =
      position == TPosition::VECIN ? HardEvent::MTE2_V : HardEvent::V_MTE3;
  static constexpr HardEvent kFreed =
      position == TPosition::VECIN ? HardEvent::V_MTE2 : HardEvent::MTE3_V;
  using State = detail::QueueState;

 public:
  template <typename T>
  LocalTensor<T> AllocTensor(ASCENDC_SIM_HERE) {
    sim::Machine& machine = sim::Machine::Current();
    const sim::Where where{file, line};
    if (!state_ || state_->slots.empty())
      throw sim::Violation(where, "AllocTensor: the queue has no buffers");
    for (size_t tried = 0; tried < state_->slots.size(); ++tried) {
      State::Slot& slot = state_->slots[state_->cursor];
      state_->cursor = (state_->cursor + 1) % state_->slots.size();
      if (slot.state != State::kFree) continue;
      slot.state = State::kOccupied;
      if (slot.free_event >= 0) {
        WaitFlag<kFreed>(slot.free_event, file, line);
        machine.ReleaseEvent(detail::Source(kFreed), detail::Target(kFreed), slot.free_event);
        slot.free_event = -1;
      }
      machine.Forget(slot.buffer);
      return LocalTensor<T>({slot.buffer, machine.buffer(slot.buffer).address});
    }
    throw sim::Violation(where, "AllocTensor: waits for ever, none of the " +
                                    std::to_string(state_->slots.size()) + " buffers of queue " +
                                    machine.BufferName(state_->slots[0].buffer) + " is free");
  }

  template <typename T>
  bool EnQue(const LocalTensor<T>& tensor, ASCENDC_SIM_HERE) {
    State::Slot& slot = Find("EnQue", tensor.memory(), {file, line});
    Expect("EnQue", slot, slot.state == State::kOccupied || slot.state == State::kDequeued,
           {file, line});
    if (state_->waiting.size() >= static_cast<size_t>(depth)) {
      throw sim::Violation({file, line},
                           "EnQue: queue " + sim::Machine::Current().BufferName(slot.buffer) +
                               " already holds " + std::to_string(depth) + " tensors, its depth");
    }
    slot.state = State::kEnqueued;
    slot.enqueued_event = sim::Machine::Current().AllocateEvent(
        detail::Source(kEnqueued), detail::Target(kEnqueued), {file, line});
    SetFlag<kEnqueued>(slot.enqueued_event, file, line);
    state_->waiting.push_back(&slot - state_->slots.data());
    return true;
  }

  template <typename T>
  LocalTensor<T> DeQue(ASCENDC_SIM_HERE) {
    sim::Machine& machine = sim::Machine::Current();
    if (!state_ || state_->waiting.empty()) {
      throw sim::Violation({file, line},
                           "DeQue: queue " +
                               machine.BufferName(state_ ? state_->slots[0].buffer : -1) +
                               " is empty");
    }
    State::Slot& slot = state_->slots[state_->waiting.front()];
    state_->waiting.erase(state_->waiting.begin());
    WaitFlag<kEnqueued>(slot.enqueued_event, file, line);
    machine.ReleaseEvent(detail::Source(kEnqueued), detail::Target(kEnqueued), slot.enqueued_event);
    slot.state = State::kDequeued;
    return LocalTensor<T>({slot.buffer, machine.buffer(slot.buffer).address});
  }

  template <typename T>
  void FreeTensor(LocalTensor<T>& tensor, ASCENDC_SIM_HERE) {
    State::Slot& slot = Find("FreeTensor", tensor.memory(), {file, line});
    Expect("FreeTensor", slot, slot.state == State::kOccupied || slot.state == State::kDequeued,
           {file, line});
    slot.state = State::kFree;
    slot.free_event = sim::Machine::Current().AllocateEvent(detail::Source(kFreed),
                                                            detail::Target(kFreed), {file, line});
    SetFlag<kFreed>(slot.free_event, file, line);
  }

 private:
  friend class TPipe;

  State::Slot& Find(const char* api, const sim::Local& memory, const sim::Where& where) {
    if (state_) {
      for (State::Slot& slot : state_->slots) {
        if (slot.buffer == memory.buffer) return slot;
      }
    }
    throw sim::Violation(where, std::string(api) + ": " +
                                    sim::Machine::Current().BufferName(memory.buffer) +
                                    " is not of this queue");
  }
  void Expect(const char* api, const State::Slot& slot, bool good, const sim::Where& where) {
    if (good) return;
    throw sim::Violation(where, std::string(api) + ": the tensor of queue " +
                                    sim::Machine::Current().BufferName(slot.buffer) + " is " +
                                    State::Name(slot.state));
  }

  std::shared_ptr<State> state_;
};

template <TPosition position>
class TBuf {
 public:
  template <typename T>
  LocalTensor<T> Get(ASCENDC_SIM_HERE) const {
    if (buffer_ < 0) throw sim::Violation({file, line}, "Get: the buffer has not been initialized");
    return LocalTensor<T>({buffer_, sim::Machine::Current().buffer(buffer_).address});
  }

 private:
  friend class TPipe;
  int buffer_ = -1;
};

class TPipe {
 public:
  template <TPosition position, int32_t depth>
  bool InitBuffer(TQue<position, depth>& queue, detail::Field<uint8_t> num,
                  detail::Field<uint32_t> len, ASCENDC_SIM_HERE) {
    sim::Machine& machine = sim::Machine::Current();
    auto state = std::make_shared<detail::QueueState>();
    for (int64_t i = 0; i < num.value; ++i) {
      state->slots.push_back({machine.AllocateBuffer(Length(len, {file, line}),
                                                     detail::PlaceOf(position), {file, line})});
    }
    queue.state_ = state;
    machine.RegisterQueue([state, where = sim::Where{file, line}] {
      for (const auto& slot : state->slots) {
        if (slot.state == detail::QueueState::kFree) continue;
        throw sim::Violation(where, "at the kernel's end a tensor of queue " +
                                        sim::Machine::Current().BufferName(slot.buffer) +
                                        " is still " + detail::QueueState::Name(slot.state));
      }
    });
    return true;
  }
  template <TPosition position>
  bool InitBuffer(TBuf<position>& buffer, detail::Field<uint32_t> len, ASCENDC_SIM_HERE) {
    buffer.buffer_ = sim::Machine::Current().AllocateBuffer(
        Length(len, {file, line}), detail::PlaceOf(position), {file, line});
    return true;
  }
  template <HardEvent event>
  TEventID AllocEventID(ASCENDC_SIM_HERE) {
    return static_cast<TEventID>(sim::Machine::Current().AllocateEvent(
        detail::Source(event), detail::Target(event), {file, line}));
  }
  template <HardEvent event>
  void ReleaseEventID(TEventID id) {
    sim::Machine::Current().ReleaseEvent(detail::Source(event), detail::Target(event), id);
  }
  TEventID FetchEventID(HardEvent event, ASCENDC_SIM_HERE) {
    return static_cast<TEventID>(sim::Machine::Current().FetchEvent(
        detail::Source(event), detail::Target(event), {file, line}));
  }

 private:
  static uint32_t Length(detail::Field<uint32_t> len, const sim::Where& where) {
    if (len.fits()) return static_cast<uint32_t>(len.value);
    throw sim::Violation(where, "a buffer of " + std::to_string(len.value) + " bytes");
  }
};

// --------------------------------------------------------------------------------------------------
// Copies between global memory and the unified buffer

namespace detail {

inline void CheckCopy(const sim::Instruction& instruction, const sim::Local& tensor,
                      const DataCopyExtParams& params, size_t element) {
  sim::Machine& machine = sim::Machine::Current();
  machine.CheckAligned(instruction, tensor);
  machine.CheckPlace(instruction, tensor);
  auto check = [&](const char* name, int64_t value, int64_t limit) {
    if (value >= 0 && value <= limit) return;
    machine.Fail(instruction, tensor,
                 std::string("is copied with ") + name + " " + std::to_string(value) +
                     ", the limit is " + std::to_string(limit));
  };
  check("blockCount", params.block_count.value, 4095);
  check("blockLen", params.block_len.value, 2097151);
  check("srcStride", params.src_stride.value, UINT32_MAX);
  check("dstStride", params.dst_stride.value, UINT32_MAX);
  if (params.block_len.value % static_cast<int64_t>(element)) {
    machine.Fail(instruction, tensor, "is copied in pieces that are no multiple of an element");
  }
}

inline void Count(sim::Traffic* traffic, uint64_t bursts, uint64_t bytes) {
  traffic->copies += 1;
  traffic->bursts += bursts;
  traffic->bytes += bursts * bytes;
  if (!traffic->shortest_burst || bytes < traffic->shortest_burst) traffic->shortest_burst = bytes;
}

// One burst of `length` bytes into the unified buffer, which fills whole blocks of 32 bytes.
template <typename T>
void FillBurst(const sim::Instruction& instruction, const sim::Local& tensor, uint32_t address,
               const uint8_t* source, uint32_t length, const DataCopyPadExtParams<T>& pad) {
  sim::Machine& machine = sim::Machine::Current();
  const uint32_t whole = length / sim::kBlock * sim::kBlock, tail = length - whole;
  std::memcpy(machine.WriteRange(instruction, tensor, address, whole), source, whole);
  if (tail == 0) return;
  const uint32_t padding = static_cast<uint32_t>(pad.right_padding.value * sizeof(T));
  uint8_t* target = machine.WritePadded(instruction, tensor, address + whole,
                                        std::min(tail + (pad.is_pad ? padding : 0), sim::kBlock));
  std::memcpy(target, source + whole, tail);
  for (uint32_t i = 0; pad.is_pad && i < padding && tail + i < sim::kBlock; i += sizeof(T)) {
    std::memcpy(target + tail + i, &pad.padding_value, sizeof(T));
  }
}

}  // namespace detail

template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src,
                 const DataCopyExtParams& params, const DataCopyPadExtParams<T>& pad,
                 ASCENDC_SIM_HERE) {
  sim::Machine& machine = sim::Machine::Current();
  const auto instruction = machine.Issue(sim::Pipe::MTE2, "DataCopyPad", {file, line});
  const sim::Local& local = dst.memory();
  detail::CheckCopy(instruction, local, params, sizeof(T));
  if (pad.left_padding.value != 0 || pad.right_padding.value * sizeof(T) > sim::kBlock) {
    machine.Fail(instruction, local, "is padded on the left, or by more than 32 bytes");
  }
  const int64_t length = params.block_len.value, count = params.block_count.value;
  if (length == 0 || count == 0) return;
  const uint64_t padded =
      (length + (pad.is_pad ? pad.right_padding.value * sizeof(T) : 0) + 31) / 32 * 32;
  const uint64_t pitch = padded + params.dst_stride.value * sim::kBlock;
  const sim::Region* region = nullptr;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* source = src.address() + i * (length + params.src_stride.value);
    region = &src.Check({file, line}, source, length);
    machine.memory().CheckNotWritten(*region, source, length, {file, line});
    const uint64_t target = local.address + i * pitch;
    if (target >= sim::kUnifiedBuffer) machine.Fail(instruction, local, "is left behind by a copy");
    detail::FillBurst(instruction, local, static_cast<uint32_t>(target), source,
                      static_cast<uint32_t>(length), pad);
  }
  detail::Count(&machine.counters().read[region->name], count, length);
}

// Whole blocks only; the kernels use DataCopyPad, whose strides are wide enough for every shape.
template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& params,
              ASCENDC_SIM_HERE) {
  sim::Machine& machine = sim::Machine::Current();
  for (const auto& field : {params.block_count, params.block_len, params.src_gap, params.dst_gap}) {
    if (field.fits()) continue;
    machine.Fail(machine.Issue(sim::Pipe::MTE2, "DataCopy", {file, line}), dst.memory(),
                 "is copied with a length or stride of " + std::to_string(field.value) +
                     " blocks, 16 bits hold 65535");
  }
  const DataCopyExtParams bytes(params.block_count.value, params.block_len.value * sim::kBlock,
                                params.src_gap.value * sim::kBlock, params.dst_gap.value, 0);
  DataCopyPad(dst, src, bytes, DataCopyPadExtParams<T>(), file, line);
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src,
                 const DataCopyExtParams& params, ASCENDC_SIM_HERE) {
  sim::Machine& machine = sim::Machine::Current();
  const auto instruction = machine.Issue(sim::Pipe::MTE3, "DataCopyPad", {file, line});
  const sim::Local& local = src.memory();
  detail::CheckCopy(instruction, local, params, sizeof(T));
  const int64_t length = params.block_len.value, count = params.block_count.value;
  if (length == 0 || count == 0) return;
  const uint64_t pitch = (length + 31) / 32 * 32 + params.src_stride.value * sim::kBlock;
  const sim::Region* region = nullptr;
  for (int64_t i = 0; i < count; ++i) {
    uint8_t* target = dst.address() + i * (length + params.dst_stride.value);
    region = &dst.Check({file, line}, target, length);
    machine.memory().MarkWritten(*region, target, length, machine.block(), {file, line});
    const uint64_t source = local.address + i * pitch;
    if (source >= sim::kUnifiedBuffer) machine.Fail(instruction, local, "is left behind by a copy");
    const uint8_t* bytes = machine.ReadRange(instruction, local, static_cast<uint32_t>(source),
                                             static_cast<uint32_t>(length));
    std::memcpy(target, bytes, length);
  }
  detail::Count(&machine.counters().written[region->name], count, length);
}

// --------------------------------------------------------------------------------------------------
// Vector instructions

namespace detail {

// One operand: where it begins, the size of its elements, its strides in blocks of 32 bytes.
struct Operand {
  sim::Local memory;
  uint32_t element;
  int64_t block_stride;
  int64_t repeat_stride;
  const char* role;
};

// What one vector instruction works on: `lanes` elements per repeat, of which the mask takes the
// first.
struct Shape {
  int64_t repeats;
  int64_t lanes;      // in one repeat: 256 bytes of the widest operand
  int64_t mask;       // lanes taken in each repeat
  int64_t last_mask;  // lanes taken in the last one (count mode)
};

inline sim::Instruction IssueVector(const char* api, const sim::Where& where, uint64_t repeats) {
  sim::Machine& machine = sim::Machine::Current();
  machine.counters().vector_instructions += 1;
  machine.counters().repeats += repeats;
  machine.counters().instructions[api] += 1;
  return machine.Issue(sim::Pipe::V, api, where);
}

// Tensor level 2, "the first count elements": the hardware's counter mode, one instruction of any
// length.
inline Shape CountShape(int64_t count, int64_t lanes) {
  const int64_t repeats = (count + lanes - 1) / lanes;
  return {repeats, lanes, lanes, count - (repeats - 1) * lanes};
}

inline void CheckFields(const sim::Instruction& instruction, const sim::Local& tensor, int64_t mask,
                        int64_t lanes, const Field<uint8_t>& repeats) {
  sim::Machine& machine = sim::Machine::Current();
  if (mask < 1 || mask > lanes) {
    machine.Fail(instruction, tensor,
                 "is used with mask " + std::to_string(mask) + ", not in [1, " +
                     std::to_string(lanes) + "]");
  }
  if (!repeats.fits()) {
    machine.Fail(instruction, tensor,
                 "is used with repeat " + std::to_string(repeats.value) + ", the limit is 255");
  }
}

inline void CheckOperand(const sim::Instruction& instruction, const Operand& operand,
                         int64_t block_limit) {
  sim::Machine& machine = sim::Machine::Current();
  machine.CheckAligned(instruction, operand.memory);
  if (operand.repeat_stride < 0 || operand.repeat_stride > 255) {
    machine.Fail(instruction, operand.memory,
                 std::string(operand.role) + " has repeat stride " +
                     std::to_string(operand.repeat_stride) + ", 8 bits hold at most 255");
  }
  if (operand.block_stride < 0 || operand.block_stride > block_limit) {
    machine.Fail(
        instruction, operand.memory,
        std::string(operand.role) + " has block stride " + std::to_string(operand.block_stride));
  }
}

// Calls each(address, lanes, first lane) for every block that one repeat of an operand touches.
template <typename F>
void ForBlocks(const Operand& operand, int64_t repeat, int64_t mask, F each) {
  const int64_t per_block = sim::kBlock / operand.element;
  for (int64_t lane = 0, block = 0; lane < mask; lane += per_block, ++block) {
    const int64_t address =
        operand.memory.address + (repeat * operand.repeat_stride + block * operand.block_stride) *
                                     static_cast<int64_t>(sim::kBlock);
    each(static_cast<uint32_t>(std::min<int64_t>(address, sim::kUnifiedBuffer)),
         std::min(per_block, mask - lane), lane);
  }
}

template <typename T>
void Load(const sim::Instruction& instruction, const Operand& operand, int64_t repeat, int64_t mask,
          T* lanes) {
  sim::Machine& machine = sim::Machine::Current();
  ForBlocks(operand, repeat, mask, [&](uint32_t address, int64_t count, int64_t lane) {
    const uint8_t* bytes = machine.Read(instruction, operand.memory, address,
                                        static_cast<uint32_t>(count * sizeof(T)));
    std::memcpy(static_cast<void*>(lanes + lane), bytes, count * sizeof(T));
  });
}

template <typename T>
void Store(const sim::Instruction& instruction, const Operand& operand, int64_t repeat,
           int64_t mask, const T* lanes) {
  sim::Machine& machine = sim::Machine::Current();
  ForBlocks(operand, repeat, mask, [&](uint32_t address, int64_t count, int64_t lane) {
    uint8_t* bytes = machine.Write(instruction, operand.memory, address,
                                   static_cast<uint32_t>(count * sizeof(T)));
    std::memcpy(bytes, lanes + lane, count * sizeof(T));
  });
}

inline int64_t MaskOf(const Shape& shape, int64_t repeat) {
  return repeat + 1 == shape.repeats ? shape.last_mask : shape.mask;
}

constexpr int64_t kMaxLanes = 128;

// dst = op(src) over all lanes.
template <typename D, typename S, typename F>
void RunUnary(const sim::Instruction& instruction, const Shape& shape, const Operand& dst,
              const Operand& src, F op) {
  CheckOperand(instruction, dst, 65535);
  CheckOperand(instruction, src, 65535);
  D out[kMaxLanes];
  S in[kMaxLanes];
  for (int64_t repeat = 0; repeat < shape.repeats; ++repeat) {
    const int64_t mask = MaskOf(shape, repeat);
    Load(instruction, src, repeat, mask, in);
    for (int64_t i = 0; i < mask; ++i) out[i] = op(in[i]);
    Store(instruction, dst, repeat, mask, out);
  }
}

template <typename F>
void RunBinary(const sim::Instruction& instruction, const Shape& shape, const Operand& dst,
               const Operand& src0, const Operand& src1, F op) {
  CheckOperand(instruction, dst, 255);
  CheckOperand(instruction, src0, 255);
  CheckOperand(instruction, src1, 255);
  float a[kMaxLanes], b[kMaxLanes];
  for (int64_t repeat = 0; repeat < shape.repeats; ++repeat) {
    const int64_t mask = MaskOf(shape, repeat);
    Load(instruction, src0, repeat, mask, a);
    Load(instruction, src1, repeat, mask, b);
    for (int64_t i = 0; i < mask; ++i) a[i] = op(a[i], b[i]);
    Store(instruction, dst, repeat, mask, a);
  }
}

template <typename T>
Operand Plain(const LocalTensor<T>& tensor, int64_t lanes, const char* role) {
  return {tensor.memory(), sizeof(T), 1, lanes * static_cast<int64_t>(sizeof(T)) / sim::kBlock,
          role};
}

inline float ToLane(float value) { return value; }
inline float ToLane(half value) { return static_cast<float>(value); }
inline float ToLane(bfloat16_t value) {
  return sim::BitsToFloat(static_cast<uint32_t>(value.bits) << 16);
}

template <typename D>
D FromLane(float value) {
  if constexpr (std::is_same_v<D, bfloat16_t>) {
    bfloat16_t result;
    result.bits = sim::FloatToBfloat16(value);
    return result;
  } else {
    return D(value);
  }
}

}  // namespace detail

inline float ToFloat(const bfloat16_t& value) { return detail::ToLane(value); }

// dst += src * scalar, in float32. Mixed precision takes 64 lanes per repeat: 8 blocks of dst, 4 of
// src.
template <typename T, typename U>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalar, uint64_t mask,
          detail::Field<uint8_t> repeats, const UnaryRepeatParams& params, ASCENDC_SIM_HERE) {
  static_assert(std::is_same_v<T, float> && (std::is_same_v<U, float> || std::is_same_v<U, half>),
                "Axpy: float += float * float or float += half * half");
  const auto instruction = detail::IssueVector("Axpy", {file, line}, repeats.value);
  detail::CheckFields(instruction, dst.memory(), mask, 64, repeats);
  const detail::Operand to{dst.memory(), sizeof(T), params.dst_blk.value, params.dst_rep.value,
                           "as destination"};
  const detail::Operand from{src.memory(), sizeof(U), params.src_blk.value, params.src_rep.value,
                             "as source"};
  detail::CheckOperand(instruction, to, 65535);
  detail::CheckOperand(instruction, from, 65535);
  const float factor = detail::ToLane(scalar);
  float sum[detail::kMaxLanes];
  U value[detail::kMaxLanes];
  for (int64_t repeat = 0; repeat < repeats.value; ++repeat) {
    detail::Load(instruction, from, repeat, mask, value);
    detail::Load(instruction, to, repeat, mask, sum);
    for (uint64_t i = 0; i < mask; ++i) sum[i] += detail::ToLane(value[i]) * factor;
    detail::Store(instruction, to, repeat, mask, sum);
  }
}

namespace detail {

template <typename D, typename S>
void CheckCast(const sim::Instruction& instruction, const sim::Local& tensor, RoundMode mode) {
  constexpr bool widens = std::is_same_v<D, float>;
  static_assert((widens && !std::is_same_v<S, float>) || std::is_same_v<S, float>,
                "Cast: to or from float");
  if (mode == (widens ? RoundMode::CAST_NONE : RoundMode::CAST_RINT)) return;
  sim::Machine::Current().Fail(instruction, tensor,
                               widens ? "is widened: the mode must be CAST_NONE"
                                      : "is narrowed: only CAST_RINT is simulated");
}

}  // namespace detail

template <typename D, typename S>
void Cast(const LocalTensor<D>& dst, const LocalTensor<S>& src, RoundMode mode, uint32_t count,
          ASCENDC_SIM_HERE) {
  if (count == 0) return;
  const detail::Shape shape = detail::CountShape(count, 64);
  const auto instruction = detail::IssueVector("Cast", {file, line}, shape.repeats);
  detail::CheckCast<D, S>(instruction, dst.memory(), mode);
  detail::RunUnary<D, S>(instruction, shape, detail::Plain(dst, 64, "as destination"),
                         detail::Plain(src, 64, "as source"),
                         [](S value) { return detail::FromLane<D>(detail::ToLane(value)); });
}

template <typename D, typename S>
void Cast(const LocalTensor<D>& dst, const LocalTensor<S>& src, RoundMode mode, uint64_t mask,
          detail::Field<uint8_t> repeats, const UnaryRepeatParams& params, ASCENDC_SIM_HERE) {
  const auto instruction = detail::IssueVector("Cast", {file, line}, repeats.value);
  detail::CheckCast<D, S>(instruction, dst.memory(), mode);
  detail::CheckFields(instruction, dst.memory(), mask, 64, repeats);
  const int64_t lanes = static_cast<int64_t>(mask);
  detail::RunUnary<D, S>(
      instruction, {repeats.value, 64, lanes, lanes},
      {dst.memory(), sizeof(D), params.dst_blk.value, params.dst_rep.value, "as destination"},
      {src.memory(), sizeof(S), params.src_blk.value, params.src_rep.value, "as source"},
      [](S value) { return detail::FromLane<D>(detail::ToLane(value)); });
}

inline void Duplicate(const LocalTensor<float>& dst, const float& value, int32_t count,
                      ASCENDC_SIM_HERE) {
  if (count <= 0) return;
  const detail::Shape shape = detail::CountShape(count, 64);
  const auto instruction = detail::IssueVector("Duplicate", {file, line}, shape.repeats);
  const detail::Operand to = detail::Plain(dst, 64, "as destination");
  detail::CheckOperand(instruction, to, 65535);
  float lanes[detail::kMaxLanes];
  std::fill(lanes, lanes + detail::kMaxLanes, value);
  for (int64_t repeat = 0; repeat < shape.repeats; ++repeat) {
    detail::Store(instruction, to, repeat, detail::MaskOf(shape, repeat), lanes);
  }
}

inline void Muls(const LocalTensor<float>& dst, const LocalTensor<float>& src, const float& scalar,
                 int32_t count, ASCENDC_SIM_HERE) {
  if (count <= 0) return;
  const detail::Shape shape = detail::CountShape(count, 64);
  const auto instruction = detail::IssueVector("Muls", {file, line}, shape.repeats);
  detail::RunUnary<float, float>(instruction, shape, detail::Plain(dst, 64, "as destination"),
                                 detail::Plain(src, 64, "as source"),
                                 [scalar](float value) { return value * scalar; });
}

inline void Add(const LocalTensor<float>& dst, const LocalTensor<float>& src0,
                const LocalTensor<float>& src1, int32_t count, ASCENDC_SIM_HERE) {
  if (count <= 0) return;
  const detail::Shape shape = detail::CountShape(count, 64);
  const auto instruction = detail::IssueVector("Add", {file, line}, shape.repeats);
  detail::RunBinary(instruction, shape, detail::Plain(dst, 64, "as destination"),
                    detail::Plain(src0, 64, "as source 0"), detail::Plain(src1, 64, "as source 1"),
                    [](float a, float b) { return a + b; });
}

inline void Mul(const LocalTensor<float>& dst, const LocalTensor<float>& src0,
                const LocalTensor<float>& src1, uint64_t mask, detail::Field<uint8_t> repeats,
                const BinaryRepeatParams& params, ASCENDC_SIM_HERE) {
  const auto instruction = detail::IssueVector("Mul", {file, line}, repeats.value);
  detail::CheckFields(instruction, dst.memory(), mask, 64, repeats);
  const int64_t lanes = static_cast<int64_t>(mask);
  detail::RunBinary(instruction, {repeats.value, 64, lanes, lanes},
                    {dst.memory(), 4, params.dst_blk.value, params.dst_rep.value, "as destination"},
                    {src0.memory(), 4, params.src0_blk.value, params.src0_rep.value, "as source 0"},
                    {src1.memory(), 4, params.src1_blk.value, params.src1_rep.value, "as source 1"},
                    [](float a, float b) { return a * b; });
}

// Each of 8 consecutive elements per repeat fills one block of 32 bytes.
inline void Brcb(const LocalTensor<float>& dst, const LocalTensor<float>& src,
                 detail::Field<uint8_t> repeats, const BrcbRepeatParams& params, ASCENDC_SIM_HERE) {
  const auto instruction = detail::IssueVector("Brcb", {file, line}, repeats.value);
  detail::CheckFields(instruction, dst.memory(), 8, 8, repeats);
  const detail::Operand to{dst.memory(), 4, params.dst_blk.value, params.dst_rep.value,
                           "as destination"};
  const detail::Operand from{src.memory(), 4, 1, 1, "as source"};
  detail::CheckOperand(instruction, to, 65535);
  detail::CheckOperand(instruction, from, 65535);
  for (int64_t repeat = 0; repeat < repeats.value; ++repeat) {
    float in[8], out[64];
    detail::Load(instruction, from, repeat, 8, in);
    for (int64_t i = 0; i < 64; ++i) out[i] = in[i / 8];
    detail::Store(instruction, to, repeat, 64, out);
  }
}

}  // namespace AscendC

#endif  // NSA_ONNX_TESTS_SIM_ASCENDC_KERNEL_OPERATOR_H_
