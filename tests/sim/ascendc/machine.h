// One vector core as the look-alike sees it: its unified buffer, its pipes, and what it has
// counted.
//
// Instructions run at once, in program order, so that the numbers are those of a correctly
// synchronized kernel. Beside the data runs a model of what the hardware promises: the scalar unit
// (S) puts instructions on the pipes V, MTE2 and MTE3; a pipe *starts* them in order, but nothing
// is known to be *complete* until a barrier or a flag says so. A vector clock per pipe records what
// is known; an access to bytes whose last use is not known to be complete is a hazard. README.md
// has the rules.
#ifndef NSA_ONNX_TESTS_SIM_ASCENDC_MACHINE_H_
#define NSA_ONNX_TESTS_SIM_ASCENDC_MACHINE_H_

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ascendc_sim {

inline constexpr uint32_t kUnifiedBuffer =
    192 * 1024 - 256;                   // bytes a kernel may use, Atlas A2 (dav-2201)
inline constexpr uint32_t kBlock = 32;  // bytes: the grain of the unified buffer
inline constexpr int kPipes = 4;
inline constexpr int kEventIds = 8;     // per pair of pipes
inline constexpr int kMaxBuffers = 64;  // of one TPipe

enum class Pipe : uint8_t { S, V, MTE2, MTE3 };

const char* PipeName(Pipe pipe);

// A place in the kernel's source; the API's functions take it as default arguments.
struct Where {
  const char* file = "";
  int line = 0;
};

// What a check throws: a message that begins with the place and names the tensor.
class Violation : public std::runtime_error {
 public:
  Violation(const Where& where, const std::string& text);
};

// How many instructions of each pipe are known to be complete.
using Clock = std::array<uint32_t, kPipes>;

struct Instruction {
  Pipe pipe;
  uint32_t index;  // 1 is the pipe's first
  Clock start;     // known to be complete when it starts
  const char* api;
  Where where;
};

// Bytes of the unified buffer: a start address inside an allocated buffer.
struct Local {
  int buffer = -1;
  uint32_t address = 0;
};

enum class Place : uint8_t { kVecIn, kVecOut, kVecCalc };

struct Buffer {
  uint32_t address;
  uint32_t bytes;
  Place place;
  Where where;  // of its InitBuffer
};

// Global memory that a kernel may touch.
struct Region {
  uint8_t* base;
  uint64_t bytes;
  std::string name;
  bool writable;
};

struct Traffic {
  uint64_t bytes = 0;
  uint64_t bursts = 0;
  uint64_t shortest_burst = 0;
  uint64_t copies = 0;
};

struct Counters {
  uint64_t vector_instructions = 0;
  uint64_t repeats = 0;
  uint64_t barriers_v = 0;    // PipeBarrier<PIPE_V>
  uint64_t barriers_mte = 0;  // PipeBarrier<PIPE_MTE2>, <PIPE_MTE3>
  uint64_t barriers_all = 0;  // PipeBarrier<PIPE_ALL>
  uint64_t flags = 0;         // SetFlag, those of queues included
  uint64_t scalar_reads = 0;  // GetValue on the unified buffer
  uint64_t scalar_gm_bytes = 0;
  uint64_t ub_peak = 0;
  uint64_t busiest_repeats = 0;                  // of the block that has most of them
  uint64_t busiest_instructions = 0;             // likewise
  std::map<std::string, uint64_t> instructions;  // by name of the vector instruction
  std::map<std::string, Traffic> read;           // by name of the region
  std::map<std::string, Traffic> written;

  void Add(const Counters& other);
};

// What all blocks of one launch share: global memory and who has written which part of it.
class GlobalMemory {
 public:
  void Add(const Region& region);
  // The region that holds all of [address, address + bytes), or null.
  const Region* Find(const void* address, uint64_t bytes) const;
  // Both throw: nobody may write twice, or read what this launch writes.
  void MarkWritten(const Region& region, const uint8_t* address, uint64_t bytes, int block,
                   const Where& where);
  void CheckNotWritten(const Region& region, const uint8_t* address, uint64_t bytes,
                       const Where& where) const;

 private:
  std::vector<Region> regions_;
  std::vector<std::vector<uint16_t>> writer_;  // per region and kBlock bytes: block + 1, or 0
};

class Machine {
 public:
  Machine(GlobalMemory* memory, int block, int blocks);

  static Machine& Current();  // of this thread; throws outside of a launch
  static void SetCurrent(Machine* machine);

  int block() const { return block_; }
  int blocks() const { return blocks_; }
  Counters& counters() { return counters_; }
  uint8_t* ub() { return ub_.data(); }

  // The pipes.
  Instruction Issue(Pipe pipe, const char* api, const Where& where);
  void Barrier(Pipe pipe);
  void BarrierAll();
  void SetFlag(Pipe from, Pipe to, int id, const Where& where);
  void WaitFlag(Pipe from, Pipe to, int id, const Where& where);
  int AllocateEvent(Pipe from, Pipe to, const Where& where);
  void ReleaseEvent(Pipe from, Pipe to, int id);
  int FetchEvent(Pipe from, Pipe to, const Where& where) const;

  // The unified buffer.
  int AllocateBuffer(uint32_t bytes, Place place, const Where& where);
  const Buffer& buffer(int index) const { return buffers_[index]; }
  void Forget(int buffer);  // its bytes hold nothing any more
  void CheckAligned(const Instruction& instruction, const Local& tensor) const;
  void CheckPlace(const Instruction& instruction,
                  const Local& tensor) const;  // of a copy from or to GM
  // One access of at most one kBlock that does not cross the next one's border.
  const uint8_t* Read(const Instruction& instruction, const Local& tensor, uint32_t address,
                      uint32_t bytes);
  uint8_t* Write(const Instruction& instruction, const Local& tensor, uint32_t address,
                 uint32_t bytes);
  // The same for any length.
  const uint8_t* ReadRange(const Instruction& instruction, const Local& tensor, uint32_t address,
                           uint32_t bytes);
  uint8_t* WriteRange(const Instruction& instruction, const Local& tensor, uint32_t address,
                      uint32_t bytes);
  // A whole kBlock of which only the first `bytes` get a value: the rest is padding nobody asked
  // for.
  uint8_t* WritePadded(const Instruction& instruction, const Local& tensor, uint32_t address,
                       uint32_t bytes);

  // Global memory: `declared` is what SetGlobalBuffer was told.
  const Region& CheckGlobal(const Where& where, const Where& declared, const uint8_t* base,
                            uint64_t limit, const uint8_t* address, uint64_t bytes) const;
  GlobalMemory& memory() { return *memory_; }

  // Called when the kernel has returned: flags set and not waited for, buffers not given back.
  void CheckFinished(const Where& where) const;
  void RegisterQueue(std::function<void()> check) { queue_checks_.push_back(std::move(check)); }

  std::string BufferName(int index) const;
  [[noreturn]] void Fail(const Instruction& instruction, const Local& tensor,
                         const std::string& text) const;

 private:
  struct Cell {  // the history of one kBlock of the unified buffer
    uint32_t write_index = 0;
    uint8_t write_pipe = 0;
    std::array<uint32_t, kPipes> read_index{};
    uint32_t valid = 0;  // one bit per byte: it has a value
  };
  struct Operation {
    const char* api;
    Where where;
  };
  struct Flag {
    bool set = false;
    bool reserved = false;
    Clock clock{};
    Where where;
  };

  Clock ScalarKnowledge() const;
  Flag& FlagOf(Pipe from, Pipe to, int id, const Where& where);
  void CheckBounds(const Instruction& instruction, const Local& tensor, uint32_t address,
                   uint32_t bytes) const;
  void Claim(const Instruction& instruction, const Local& tensor, uint32_t address, uint32_t bytes);
  void CheckNoConflict(const Instruction& instruction, const Local& tensor, uint32_t address,
                       Pipe pipe, uint32_t index, const char* verb, const char* other_verb) const;

  GlobalMemory* memory_;
  int block_, blocks_;
  Counters counters_;
  std::vector<uint8_t> ub_;
  std::vector<Cell> cells_;
  std::vector<Buffer> buffers_;
  uint32_t allocated_ = 0;
  std::array<Clock, kPipes> known_{};
  std::array<std::vector<Operation>, kPipes> issued_;
  std::array<std::array<std::array<Flag, kEventIds>, kPipes>, kPipes> flags_{};
  std::vector<std::function<void()>> queue_checks_;
};

// The source text of what stands before or after `pattern` on a line, so that messages can name a
// tensor as its author did: the first argument of InitBuffer, the object of SetGlobalBuffer.
std::string NameFromSource(const Where& where, const char* regex);

// Runs all blocks of a launch, one after the other, in an order drawn from `seed` (0: ascending).
// Throws Violation.
Counters Launch(GlobalMemory* memory, int blocks, uint64_t seed,
                const std::function<void()>& kernel);

}  // namespace ascendc_sim

#endif  // NSA_ONNX_TESTS_SIM_ASCENDC_MACHINE_H_
