// What the launchers of all operators share (launch_simulated.h), and the functions that the
// simulated libnsa_ascend_kernels.so offers to tests (simulated.h).
#include "launch_simulated.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>

#include "launch.h"
#include "run_kernel.h"
#include "simulated.h"

namespace {

using ascendc_sim::Counters;
using ascendc_sim::Traffic;

constexpr int32_t kDeviceFault = 507015;  // ACL_ERROR_RT_AICORE_EXCEPTION

std::mutex mutex;  // of what follows
uint64_t seed = 0;
std::string last_counters = "{}";
std::string last_error;
const NsaAscendSimDevice* device = nullptr;

using ascendc_sim::Run;

struct Task {
  Run run;
  const void* input;
  const void* weight;
  void* output;
  const void* plan;
  int blocks;
  const NsaAscendSimDevice* device;
};

std::string Json(const std::map<std::string, Traffic>& traffic) {
  std::string text = "{";
  for (const auto& [name, of] : traffic) {
    text += (text.size() > 1 ? ", \"" : "\"") + name +
            "\": {\"bytes\": " + std::to_string(of.bytes) +
            ", \"bursts\": " + std::to_string(of.bursts) +
            ", \"shortest_burst\": " + std::to_string(of.shortest_burst) +
            ", \"copies\": " + std::to_string(of.copies) + "}";
  }
  return text + "}";
}

std::string Json(const Counters& counters, int blocks) {
  std::string text = "{\"blocks\": " + std::to_string(blocks);
  const std::pair<const char*, uint64_t> numbers[] = {
      {"vector_instructions", counters.vector_instructions},
      {"repeats", counters.repeats},
      {"barriers_v", counters.barriers_v},
      {"barriers_mte", counters.barriers_mte},
      {"barriers_all", counters.barriers_all},
      {"flags", counters.flags},
      {"scalar_reads", counters.scalar_reads},
      {"scalar_gm_bytes", counters.scalar_gm_bytes},
      {"ub_peak", counters.ub_peak},
      {"busiest_repeats", counters.busiest_repeats},
      {"busiest_instructions", counters.busiest_instructions}};
  for (const auto& [name, value] : numbers)
    text += std::string(", \"") + name + "\": " + std::to_string(value);
  text += ", \"instructions\": {";
  bool first = true;
  for (const auto& [name, count] : counters.instructions) {
    text += (first ? "\"" : ", \"") + name + "\": " + std::to_string(count);
    first = false;
  }
  return text + "}, \"read\": " + Json(counters.read) + ", \"written\": " + Json(counters.written) +
         "}";
}

uint8_t* Bytes(const Task& task, const void* address, uint64_t size) {
  void* bytes = task.device ? task.device->bytes(address, size) : const_cast<void*>(address);
  if (!bytes && size)
    throw std::runtime_error("a launch was given memory that is not the device's");
  return static_cast<uint8_t*>(bytes);
}

Counters RunTask(const Task& task, uint64_t order) {
  auto* header =
      reinterpret_cast<const int64_t*>(Bytes(task, task.plan, nsa_ascend::kPlanCommon * 8));
  const ascendc_sim::TensorBytes bytes = ascendc_sim::BytesOf(header);
  const ascendc_sim::Tensors tensors{
      Bytes(task, task.input, bytes.input), Bytes(task, task.weight, bytes.weight),
      Bytes(task, task.output, bytes.output), Bytes(task, task.plan, bytes.plan)};
  return task.run(tensors, task.blocks, order);
}

int32_t Execute(void* argument) {
  const std::unique_ptr<Task> task(static_cast<Task*>(argument));
  uint64_t order;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    order = seed;
  }
  std::string counters = "{}", error;
  try {
    counters = Json(RunTask(*task, order), task->blocks);
  } catch (const std::exception& problem) {
    error = problem.what();
  }
  const std::lock_guard<std::mutex> lock(mutex);
  last_counters = counters;
  last_error = error;
  return error.empty() ? 0 : kDeviceFault;
}

int64_t HandOut(const std::string& text, char* target, int64_t size) {
  if (target && size > 0) {
    const size_t length = std::min(text.size(), static_cast<size_t>(size - 1));
    std::memcpy(target, text.data(), length);
    target[length] = '\0';
  }
  return static_cast<int64_t>(text.size());
}

}  // namespace

int32_t ascendc_sim::Submit(const char* name, Run run, void* stream, const void* input,
                            const void* weight, void* output, const void* plan, int64_t blocks) {
  if (blocks <= 0) return 0;
  auto owned = std::make_unique<Task>(
      Task{run, input, weight, output, plan, static_cast<int>(blocks), nullptr});
  {
    const std::lock_guard<std::mutex> lock(mutex);
    owned->device = device;
  }
  if (!owned->device) return Execute(owned.release());
  const int32_t status = owned->device->submit(stream, name, Execute, owned.get());
  if (status == 0) owned.release();  // it is the worker's, which may be done with it
  return status;
}

extern "C" {

const char* nsa_ascend_target(void) { return "simulated"; }

void nsa_ascend_sim_use_device(const NsaAscendSimDevice* other) {
  const std::lock_guard<std::mutex> lock(mutex);
  device = other;
}

void nsa_ascend_sim_set_seed(uint64_t other) {
  const std::lock_guard<std::mutex> lock(mutex);
  seed = other;
}

int64_t nsa_ascend_sim_counters(char* text, int64_t size) {
  const std::lock_guard<std::mutex> lock(mutex);
  return HandOut(last_counters, text, size);
}

int64_t nsa_ascend_sim_error(char* text, int64_t size) {
  const std::lock_guard<std::mutex> lock(mutex);
  return HandOut(last_error, text, size);
}

}  // extern "C"
