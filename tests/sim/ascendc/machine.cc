// The processor core that the look-alike of Ascend C models: memory, clocks, checks. README.md says
// what each rule means.
#include "machine.h"

#include <algorithm>
#include <fstream>
#include <numeric>
#include <random>
#include <regex>

namespace ascendc_sim {
namespace {

thread_local Machine* current = nullptr;

std::string Base(const char* path) {
  const std::string text = path;
  return text.substr(text.find_last_of('/') + 1);
}

std::string At(const Where& where) { return Base(where.file) + ":" + std::to_string(where.line); }

void Join(Clock* clock, const Clock& other) {
  for (int pipe = 0; pipe < kPipes; ++pipe) (*clock)[pipe] = std::max((*clock)[pipe], other[pipe]);
}

// One bit for each of `bytes` bytes of the kBlock in which `address` lies.
uint32_t ByteMask(uint32_t address, uint32_t bytes) {
  return bytes == kBlock ? ~0u : ((1u << bytes) - 1u) << (address % kBlock);
}

void AddTraffic(std::map<std::string, Traffic>* sums,
                const std::map<std::string, Traffic>& others) {
  for (const auto& [name, other] : others) {
    Traffic& sum = (*sums)[name];
    sum.bytes += other.bytes;
    sum.bursts += other.bursts;
    sum.copies += other.copies;
    if (other.bursts && (!sum.shortest_burst || other.shortest_burst < sum.shortest_burst)) {
      sum.shortest_burst = other.shortest_burst;
    }
  }
}

}  // namespace

const char* PipeName(Pipe pipe) {
  static const char* const kNames[] = {"PIPE_S", "PIPE_V", "PIPE_MTE2", "PIPE_MTE3"};
  return kNames[static_cast<int>(pipe)];
}

Violation::Violation(const Where& where, const std::string& text)
    : runtime_error(At(where) + ": " + text) {}

void Counters::Add(const Counters& other) {
  vector_instructions += other.vector_instructions;
  repeats += other.repeats;
  barriers_v += other.barriers_v;
  barriers_mte += other.barriers_mte;
  barriers_all += other.barriers_all;
  flags += other.flags;
  scalar_reads += other.scalar_reads;
  scalar_gm_bytes += other.scalar_gm_bytes;
  ub_peak = std::max(ub_peak, other.ub_peak);
  busiest_repeats = std::max(busiest_repeats, other.repeats);
  busiest_instructions = std::max(busiest_instructions, other.vector_instructions);
  for (const auto& [name, count] : other.instructions) instructions[name] += count;
  AddTraffic(&read, other.read);
  AddTraffic(&written, other.written);
}

// --------------------------------------------------------------------------------------------------
// Global memory

void GlobalMemory::Add(const Region& region) {
  regions_.push_back(region);
  writer_.emplace_back(region.writable ? (region.bytes + kBlock - 1) / kBlock : 0, uint16_t{0});
}

const Region* GlobalMemory::Find(const void* address, uint64_t bytes) const {
  const auto* start = static_cast<const uint8_t*>(address);
  for (const Region& region : regions_) {
    if (start >= region.base && start - region.base <= static_cast<int64_t>(region.bytes) &&
        bytes <= region.bytes - (start - region.base)) {
      return &region;
    }
  }
  return nullptr;
}

void GlobalMemory::MarkWritten(const Region& region, const uint8_t* address, uint64_t bytes,
                               int block, const Where& where) {
  if (!region.writable)
    throw Violation(where, "writes global memory '" + region.name + "', which is an input");
  std::vector<uint16_t>& writer = writer_[&region - regions_.data()];
  const uint64_t first = (address - region.base) / kBlock;
  const uint64_t last = (address - region.base + bytes - 1) / kBlock;
  for (uint64_t cell = first; cell <= last; ++cell) {
    if (writer[cell]) {
      throw Violation(where, "block " + std::to_string(block) + " writes byte " +
                                 std::to_string(cell * kBlock) + " of global memory '" +
                                 region.name + "', which block " +
                                 std::to_string(writer[cell] - 1) +
                                 " has written in the same launch");
    }
    writer[cell] = static_cast<uint16_t>(block + 1);
  }
}

void GlobalMemory::CheckNotWritten(const Region& region, const uint8_t* address, uint64_t bytes,
                                   const Where& where) const {
  const std::vector<uint16_t>& writer = writer_[&region - regions_.data()];
  if (writer.empty() || bytes == 0) return;
  for (uint64_t cell = (address - region.base) / kBlock;
       cell <= (address - region.base + bytes - 1) / kBlock; ++cell) {
    if (writer[cell]) {
      throw Violation(where, "reads global memory '" + region.name + "' that block " +
                                 std::to_string(writer[cell] - 1) + " writes in the same launch");
    }
  }
}

// --------------------------------------------------------------------------------------------------
// Pipes

Machine::Machine(GlobalMemory* memory, int block, int blocks)
    : memory_(memory),
      block_(block),
      blocks_(blocks),
      ub_(kUnifiedBuffer, 0xff),
      cells_(kUnifiedBuffer / kBlock) {}

Machine& Machine::Current() {
  if (!current) throw std::logic_error("Ascend C used outside of a launch");
  return *current;
}

void Machine::SetCurrent(Machine* machine) { current = machine; }

// What the scalar unit has waited for, everybody learns with the next instruction it issues. Its
// own loads and stores are not part of that: they need a flag like any other pipe's.
Clock Machine::ScalarKnowledge() const {
  Clock clock = known_[static_cast<int>(Pipe::S)];
  clock[static_cast<int>(Pipe::S)] = 0;
  return clock;
}

Instruction Machine::Issue(Pipe pipe, const char* api, const Where& where) {
  const int p = static_cast<int>(pipe);
  if (pipe == Pipe::S) {
    known_[p][p] = static_cast<uint32_t>(issued_[p].size());  // in order and synchronous
  } else {
    Join(&known_[p], ScalarKnowledge());
  }
  issued_[p].push_back({api, where});
  return {pipe, static_cast<uint32_t>(issued_[p].size()), known_[p], api, where};
}

void Machine::Barrier(Pipe pipe) {
  const int p = static_cast<int>(pipe);
  known_[p][p] = static_cast<uint32_t>(issued_[p].size());
  (pipe == Pipe::V ? counters_.barriers_v : counters_.barriers_mte) += 1;
}

void Machine::BarrierAll() {
  Clock all{};
  for (int p = 0; p < kPipes; ++p) {
    Join(&all, known_[p]);
    all[p] = static_cast<uint32_t>(issued_[p].size());
  }
  known_.fill(all);
  counters_.barriers_all += 1;
}

Machine::Flag& Machine::FlagOf(Pipe from, Pipe to, int id, const Where& where) {
  if (id < 0 || id >= kEventIds) {
    throw Violation(where, "event id " + std::to_string(id) + " is not in [0, " +
                               std::to_string(kEventIds) + ")");
  }
  return flags_[static_cast<int>(from)][static_cast<int>(to)][id];
}

void Machine::SetFlag(Pipe from, Pipe to, int id, const Where& where) {
  Flag& flag = FlagOf(from, to, id, where);
  const std::string name =
      std::string(PipeName(from)) + " -> " + PipeName(to) + " " + std::to_string(id);
  if (flag.set)
    throw Violation(where, "flag " + name + " is set twice, first at " + At(flag.where));
  const int p = static_cast<int>(from);
  flag.set = true;
  flag.where = where;
  flag.clock = known_[p];
  if (from != Pipe::S) Join(&flag.clock, ScalarKnowledge());
  flag.clock[p] = static_cast<uint32_t>(issued_[p].size());
  counters_.flags += 1;
}

void Machine::WaitFlag(Pipe from, Pipe to, int id, const Where& where) {
  Flag& flag = FlagOf(from, to, id, where);
  if (!flag.set) {
    throw Violation(where, std::string("waits for ever: flag ") + PipeName(from) + " -> " +
                               PipeName(to) + " " + std::to_string(id) + " is not set");
  }
  flag.set = false;
  Join(&known_[static_cast<int>(to)], flag.clock);
}

int Machine::FetchEvent(Pipe from, Pipe to, const Where& where) const {
  const auto& flags = flags_[static_cast<int>(from)][static_cast<int>(to)];
  for (int id = 0; id < kEventIds; ++id) {
    if (!flags[id].reserved) return id;
  }
  throw Violation(
      where, std::string("no event id is left from ") + PipeName(from) + " to " + PipeName(to));
}

int Machine::AllocateEvent(Pipe from, Pipe to, const Where& where) {
  const int id = FetchEvent(from, to, where);
  flags_[static_cast<int>(from)][static_cast<int>(to)][id].reserved = true;
  return id;
}

void Machine::ReleaseEvent(Pipe from, Pipe to, int id) {
  flags_[static_cast<int>(from)][static_cast<int>(to)][id].reserved = false;
}

// --------------------------------------------------------------------------------------------------
// The unified buffer

int Machine::AllocateBuffer(uint32_t bytes, Place place, const Where& where) {
  const std::string name = "'" + NameFromSource(where, R"(InitBuffer\(\s*([\w.>-]+))") + "'";
  if (bytes == 0) throw Violation(where, "buffer " + name + " has no bytes");
  if (buffers_.size() >= kMaxBuffers)
    throw Violation(where, "buffer " + name + " is the 65th of this pipe");
  bytes = (bytes + kBlock - 1) / kBlock * kBlock;
  if (bytes > kUnifiedBuffer - allocated_) {
    throw Violation(where, "buffer " + name + " of " + std::to_string(bytes) +
                               " bytes does not fit: " + std::to_string(allocated_) + " of " +
                               std::to_string(kUnifiedBuffer) + " are taken");
  }
  buffers_.push_back({allocated_, bytes, place, where});
  allocated_ += bytes;
  counters_.ub_peak = std::max<uint64_t>(counters_.ub_peak, allocated_);
  return static_cast<int>(buffers_.size()) - 1;
}

void Machine::Forget(int index) {
  const Buffer& buffer = buffers_[index];
  for (uint32_t cell = buffer.address / kBlock; cell < (buffer.address + buffer.bytes) / kBlock;
       ++cell) {
    cells_[cell].valid = 0;
  }
}

std::string Machine::BufferName(int index) const {
  if (index < 0) return "a tensor without memory";
  return "'" + NameFromSource(buffers_[index].where, R"(InitBuffer\(\s*([\w.>-]+))") + "'";
}

void Machine::Fail(const Instruction& instruction, const Local& tensor,
                   const std::string& text) const {
  throw Violation(instruction.where,
                  std::string(instruction.api) + ": " + BufferName(tensor.buffer) + " " + text);
}

void Machine::CheckAligned(const Instruction& instruction, const Local& tensor) const {
  if (tensor.buffer < 0) Fail(instruction, tensor, "is used");
  if (tensor.address % kBlock) {
    Fail(instruction, tensor,
         "starts at byte " + std::to_string(tensor.address - buffers_[tensor.buffer].address) +
             ", which is not a multiple of 32");
  }
}

void Machine::CheckPlace(const Instruction& instruction, const Local& tensor) const {
  if (buffers_[tensor.buffer].place == Place::kVecCalc) {
    Fail(instruction, tensor, "is in VECCALC; GM is copied only to and from VECIN and VECOUT");
  }
}

void Machine::CheckBounds(const Instruction& instruction, const Local& tensor, uint32_t address,
                          uint32_t bytes) const {
  const Buffer& buffer = buffers_[tensor.buffer];
  if (address >= buffer.address && address + bytes <= buffer.address + buffer.bytes) return;
  Fail(instruction, tensor,
       "has " + std::to_string(buffer.bytes) + " bytes, access to byte " +
           std::to_string(static_cast<int64_t>(address) - buffer.address));
}

void Machine::CheckNoConflict(const Instruction& instruction, const Local& tensor, uint32_t address,
                              Pipe pipe, uint32_t index, const char* verb,
                              const char* other_verb) const {
  if (index == 0 || instruction.start[static_cast<int>(pipe)] >= index) return;
  const uint32_t byte = address - buffers_[tensor.buffer].address;
  if (pipe == instruction.pipe && index == instruction.index) {
    Fail(instruction, tensor,
         std::string(verb) + " byte " + std::to_string(byte) +
             " that another repeat of the same instruction " + other_verb);
  }
  const Operation& other = issued_[static_cast<int>(pipe)][index - 1];
  Fail(instruction, tensor,
       std::string(verb) + " byte " + std::to_string(byte) + " on " + PipeName(instruction.pipe) +
           ", but " + other.api + " at " + At(other.where) + " on " + PipeName(pipe) + ", which " +
           other_verb + " it, is not known to be complete: synchronization is missing");
}

const uint8_t* Machine::Read(const Instruction& instruction, const Local& tensor, uint32_t address,
                             uint32_t bytes) {
  CheckBounds(instruction, tensor, address, bytes);
  Cell& cell = cells_[address / kBlock];
  const uint32_t mask = ByteMask(address, bytes);
  if ((cell.valid & mask) != mask) {
    Fail(instruction, tensor,
         "is read at byte " + std::to_string(address - buffers_[tensor.buffer].address) +
             ", which nobody has written");
  }
  CheckNoConflict(instruction, tensor, address, static_cast<Pipe>(cell.write_pipe),
                  cell.write_index, "reads", "writes");
  cell.read_index[static_cast<int>(instruction.pipe)] = instruction.index;
  return &ub_[address];
}

// The checks of a write; its bytes have no value afterwards.
void Machine::Claim(const Instruction& instruction, const Local& tensor, uint32_t address,
                    uint32_t bytes) {
  CheckBounds(instruction, tensor, address, bytes);
  Cell& cell = cells_[address / kBlock];
  CheckNoConflict(instruction, tensor, address, static_cast<Pipe>(cell.write_pipe),
                  cell.write_index, "writes", "writes");
  for (int pipe = 0; pipe < kPipes; ++pipe) {
    // An instruction that reads and writes the same place in one repeat (dst += ...) is in order.
    if (pipe == static_cast<int>(instruction.pipe) && cell.read_index[pipe] == instruction.index)
      continue;
    CheckNoConflict(instruction, tensor, address, static_cast<Pipe>(pipe), cell.read_index[pipe],
                    "writes", "reads");
  }
  cell.write_pipe = static_cast<uint8_t>(instruction.pipe);
  cell.write_index = instruction.index;
  cell.valid &= ~ByteMask(address, bytes);
}

uint8_t* Machine::Write(const Instruction& instruction, const Local& tensor, uint32_t address,
                        uint32_t bytes) {
  Claim(instruction, tensor, address, bytes);
  cells_[address / kBlock].valid |= ByteMask(address, bytes);
  return &ub_[address];
}

uint8_t* Machine::WritePadded(const Instruction& instruction, const Local& tensor, uint32_t address,
                              uint32_t bytes) {
  Claim(instruction, tensor, address, kBlock);
  cells_[address / kBlock].valid |= ByteMask(address, bytes);
  return &ub_[address];
}

const uint8_t* Machine::ReadRange(const Instruction& instruction, const Local& tensor,
                                  uint32_t address, uint32_t bytes) {
  for (uint32_t done = 0; done < bytes;) {
    const uint32_t step = std::min(bytes - done, kBlock - (address + done) % kBlock);
    Read(instruction, tensor, address + done, step);
    done += step;
  }
  return &ub_[address];
}

uint8_t* Machine::WriteRange(const Instruction& instruction, const Local& tensor, uint32_t address,
                             uint32_t bytes) {
  for (uint32_t done = 0; done < bytes;) {
    const uint32_t step = std::min(bytes - done, kBlock - (address + done) % kBlock);
    Write(instruction, tensor, address + done, step);
    done += step;
  }
  return &ub_[address];
}

const Region& Machine::CheckGlobal(const Where& where, const Where& declared, const uint8_t* base,
                                   uint64_t limit, const uint8_t* address, uint64_t bytes) const {
  const int64_t offset = address - base;
  if (offset < 0 || static_cast<uint64_t>(offset) + bytes > limit) {
    throw Violation(where, "global tensor '" +
                               NameFromSource(declared, R"(([\w]+)\.SetGlobalBuffer)") + "' has " +
                               std::to_string(limit) + " bytes, access to [" +
                               std::to_string(offset) + ", " +
                               std::to_string(offset + static_cast<int64_t>(bytes)) + ")");
  }
  const Region* region = memory_->Find(address, bytes);
  if (!region) {
    throw Violation(where, "global tensor '" +
                               NameFromSource(declared, R"(([\w]+)\.SetGlobalBuffer)") +
                               "' reaches outside of the launch's global memory");
  }
  return *region;
}

void Machine::CheckFinished(const Where& where) const {
  for (const auto& check : queue_checks_) check();
  for (int from = 0; from < kPipes; ++from) {
    for (int to = 0; to < kPipes; ++to) {
      for (const Flag& flag : flags_[from][to]) {
        // A queue's last "is free" flags are taken back by the pipe's destructor; they stay
        // reserved.
        if (flag.set && !flag.reserved) {
          throw Violation(flag.where.line ? flag.where : where,
                          std::string("flag ") + PipeName(static_cast<Pipe>(from)) + " -> " +
                              PipeName(static_cast<Pipe>(to)) + " is set and nobody waits for it");
        }
      }
    }
  }
}

std::string NameFromSource(const Where& where, const char* regex) {
  std::ifstream file(where.file);
  std::string line;
  for (int i = 0; i < where.line && std::getline(file, line); ++i) {
  }
  std::smatch match;
  if (file && std::regex_search(line, match, std::regex(regex))) return match[1];
  return "made at " + At(where);
}

Counters Launch(GlobalMemory* memory, int blocks, uint64_t seed,
                const std::function<void()>& kernel) {
  std::vector<int> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  if (seed) std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
  Counters sum;
  for (int block : order) {
    Machine machine(memory, block, blocks);
    struct Scope {  // also when a check throws
      explicit Scope(Machine* machine) { Machine::SetCurrent(machine); }
      ~Scope() { Machine::SetCurrent(nullptr); }
    } scope(&machine);
    kernel();
    machine.CheckFinished({});
    sum.Add(machine.counters());
  }
  return sum;
}

}  // namespace ascendc_sim
