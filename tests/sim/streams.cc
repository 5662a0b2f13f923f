// The part of the simulated libascendcl.so about contexts, streams (a worker thread each) and
// events.
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <thread>
#include <vector>

#include "control.h"
#include "simulator.h"
#include "state.h"

namespace nsa_sim {
namespace {

using Clock = std::chrono::steady_clock;

std::atomic<std::uint64_t> delay_us{0};
std::atomic<std::uint64_t> pending{0};
std::atomic<std::uint64_t> lost_failures{0};  // of streams destroyed before anybody asked
std::mutex failing_task_mutex;
std::uint64_t failing_task = 0;  // 0: none armed

struct Task {
  const char* name;
  std::function<void()> work;
  bool fails;  // chosen by nsa_sim_fail_task
  bool mark;   // of an event: takes no time and cannot fail
};

bool chosen_to_fail() {
  std::lock_guard<std::mutex> lock(failing_task_mutex);
  return failing_task > 0 && --failing_task == 0;
}

// One queue, one thread. Destroying the handle waits for the tasks; the object lives for as long as
// somebody is still waiting on it.
class Stream {
 public:
  explicit Stream(int device) : device_(device) {}

  static std::shared_ptr<Stream> start(int device) {
    auto stream = std::make_shared<Stream>(device);
    std::thread([stream] { stream->work(); }).detach();
    return stream;
  }

  int device() const { return device_; }

  void submit(const char* name, std::function<void()> work, bool mark) {
    const bool fails = !mark && chosen_to_fail();
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back({name, std::move(work), fails, mark});
    ++submitted_;
    ++pending;
    changed_.notify_all();
  }

  // Waits for what has been submitted so far; the first failure is reported once, then forgotten.
  void synchronize(std::int32_t timeout_ms) {
    std::unique_lock<std::mutex> lock(mutex_);
    const std::uint64_t until = submitted_;
    const auto done = [&] { return finished_ >= until; };
    if (timeout_ms < 0)
      changed_.wait(lock, done);
    else if (!changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), done))
      throw Refused{ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, text("not done after %d ms", timeout_ms)};
    raise_failure();
  }

  bool idle() {
    std::lock_guard<std::mutex> lock(mutex_);
    return finished_ == submitted_;
  }

  bool failed() {
    std::lock_guard<std::mutex> lock(mutex_);
    return failure_ != nullptr;
  }

  void finish() {  // after the last task, the thread goes
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return finished_ == submitted_; });
    stopping_ = true;
    changed_.notify_all();
  }

 private:
  void raise_failure() {
    if (failure_ == nullptr) return;
    const DeviceFault failure = *failure_;
    failure_.reset();
    throw Refused{failure.code, failure.message};
  }

  void work() {
    // Signals belong to the application's threads.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stopping_ || !tasks_.empty(); });
      if (tasks_.empty()) break;
      Task task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      std::unique_ptr<DeviceFault> failure = run(task);
      task.work = nullptr;  // what it holds is released before anybody sees it finished
      lock.lock();
      if (failure != nullptr && failure_ == nullptr) failure_ = std::move(failure);
      ++finished_;
      --pending;
      changed_.notify_all();
    }
  }

  std::unique_ptr<DeviceFault> run(const Task& task) const {
    std::unique_ptr<DeviceFault> failure;
    try {
      const std::uint64_t delay = task.mark ? 0 : delay_us.load();
      if (delay != 0) std::this_thread::sleep_for(std::chrono::microseconds(delay));
      if (task.fails)
        throw DeviceFault{ACL_ERROR_RT_VECTOR_CORE_EXCEPTION, "failed because a test asked for it"};
      task.work();
    } catch (const DeviceFault& fault) {
      failure = std::make_unique<DeviceFault>(
          DeviceFault{fault.code, text("task %s failed: %s", task.name, fault.message.c_str())});
    }
    if (!task.mark)
      log_line(text("task %p %s %d\n", static_cast<const void*>(this), task.name,
                    failure == nullptr ? 0 : failure->code));
    return failure;
  }

  const int device_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  std::uint64_t submitted_ = 0;
  std::uint64_t finished_ = 0;
  bool stopping_ = false;
  std::unique_ptr<DeviceFault> failure_;
};

using StreamPtr = std::shared_ptr<Stream>;

struct Context {
  explicit Context(int on_device) : device(on_device), default_stream(Stream::start(on_device)) {}
  const int device;
  const StreamPtr default_stream;
};

// An event is the number of times it was recorded, and of those that the device has passed.
struct Event {
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t recorded = 0;
  std::uint64_t passed = 0;
  Clock::time_point at;

  void wait(std::uint64_t until) {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return passed >= until; });
  }
};

// Tasks hold their event: destroying one that is still to be recorded is legal.
struct EventHandle {
  std::shared_ptr<Event> event = std::make_shared<Event>();
};

struct Devices {
  std::mutex mutex;
  std::vector<Context*> primary;   // by device, null until the first aclrtSetDevice
  std::vector<StreamPtr> streams;  // of all contexts, default streams included
};

Devices& devices() {
  static auto* state = new Devices;  // never destroyed, see simulator.cc
  return *state;
}

thread_local Context* current = nullptr;

void remember(const StreamPtr& stream) {
  std::lock_guard<std::mutex> lock(devices().mutex);
  devices().streams.push_back(stream);
}

void forget(const StreamPtr& stream) {
  std::lock_guard<std::mutex> lock(devices().mutex);
  auto& all = devices().streams;
  all.erase(std::remove(all.begin(), all.end(), stream), all.end());
}

int device_count() {
  static const int count = [] {
    const char* value = std::getenv("NSA_SIM_DEVICES");
    return value == nullptr ? 1 : std::atoi(value);
  }();
  return count;
}

void require_device(int device) {
  if (device < 0 || device >= device_count())
    throw Refused{ACL_ERROR_RT_INVALID_DEVICEID,
                  text("deviceId = %d, there are %d devices", device, device_count())};
}

Context* primary_context(int device) {
  require_device(device);
  std::lock_guard<std::mutex> lock(devices().mutex);
  auto& primary = devices().primary;
  if (primary.empty()) primary.resize(static_cast<std::size_t>(device_count()));
  Context*& context = primary[static_cast<std::size_t>(device)];
  if (context == nullptr) {
    context = new Context(device);
    devices().streams.push_back(context->default_stream);
  }
  return context;
}

StreamPtr stream_of(aclrtStream handle) {
  if (handle == nullptr) return current->default_stream;
  require_live(Kind::kStream, handle, "stream");
  std::lock_guard<std::mutex> lock(devices().mutex);
  for (const StreamPtr& stream : devices().streams) {
    if (stream.get() != handle) continue;
    if (stream->device() == current->device) return stream;
    throw Refused{ACL_ERROR_RT_STREAM_CONTEXT,
                  text("the stream is on device %d, this thread on device %d", stream->device(),
                       current->device)};
  }
  throw Refused{ACL_ERROR_RT_INVALID_HANDLE, text("stream = %p is being destroyed", handle)};
}

std::shared_ptr<Event> event_of(aclrtEvent handle) {
  require_live(Kind::kEvent, handle, "event");
  return static_cast<EventHandle*>(handle)->event;
}

template <class T>
void require_pointer(const T* pointer, const char* argument) {
  if (pointer == nullptr) throw Refused{ACL_ERROR_INVALID_PARAM, text("%s is null", argument)};
}

void create_stream(aclrtStream* stream) {
  require_pointer(stream, "stream");
  const StreamPtr created = Stream::start(current->device);
  add_handle(Kind::kStream, created.get());
  remember(created);
  *stream = created.get();
}

void destroy_stream(aclrtStream handle) {
  require_pointer(handle, "stream");
  const StreamPtr stream = stream_of(handle);
  remove_handle(Kind::kStream, handle);
  stream->finish();
  forget(stream);
  if (stream->failed()) ++lost_failures;
}

void create_event(aclrtEvent* event) {
  require_pointer(event, "event");
  auto* created = new EventHandle;
  add_handle(Kind::kEvent, created);
  *event = created;
}

// Waits for every stream of this thread's device, then reports the first failure of any.
void synchronize_device(std::int32_t timeout_ms) {
  std::vector<StreamPtr> waited;
  {
    std::lock_guard<std::mutex> lock(devices().mutex);
    waited = devices().streams;
  }
  std::unique_ptr<Refused> first;
  for (const StreamPtr& stream : waited) {
    if (stream->device() != current->device) continue;
    try {
      stream->synchronize(timeout_ms);
    } catch (const Refused& failure) {
      if (first == nullptr) first = std::make_unique<Refused>(failure);
    }
  }
  if (first != nullptr) throw Refused(*first);
}

bool event_passed(aclrtEvent handle) {
  const std::shared_ptr<Event> event = event_of(handle);
  std::lock_guard<std::mutex> lock(event->mutex);
  return event->passed == event->recorded;
}

}  // namespace

bool has_context() { return current != nullptr; }

std::uint64_t unseen_failures() {
  std::lock_guard<std::mutex> lock(devices().mutex);
  std::uint64_t count = lost_failures;
  for (const StreamPtr& stream : devices().streams) count += stream->failed() ? 1 : 0;
  return count;
}

void submit(aclrtStream stream, const char* name, std::function<void()> work) {
  stream_of(stream)->submit(name, std::move(work), false);
}

}  // namespace nsa_sim

// ---------------------------------------------------------------------------------------------------

using namespace nsa_sim;

extern "C" {

void nsa_sim_set_delay_us(uint64_t microseconds) { delay_us = microseconds; }

void nsa_sim_fail_task(uint64_t nth) {
  std::lock_guard<std::mutex> lock(failing_task_mutex);
  failing_task = nth;
}

uint64_t nsa_sim_pending_tasks() { return pending; }

// Devices and contexts
// ------------------------------------------------------------------------------

// Also before aclInit: torch_npu asks first.
aclError aclrtGetDeviceCount(uint32_t* count) {
  return call(__func__, kNothing, [&] {
    require_pointer(count, "count");
    *count = static_cast<uint32_t>(device_count());
  });
}

aclError aclrtSetDevice(int32_t deviceId) {
  return call(__func__, kInit, [&] { current = primary_context(deviceId); });
}

aclError aclrtResetDevice(int32_t deviceId) {
  return call(__func__, kInit | kCarriedOut, [&] {
    require_device(deviceId);
    if (current != nullptr && current->device == deviceId) current = nullptr;
  });
}

aclError aclrtGetDevice(int32_t* deviceId) {
  return call(__func__, kContext, [&] {
    require_pointer(deviceId, "deviceId");
    *deviceId = current->device;
  });
}

aclError aclrtCreateContext(aclrtContext* context, int32_t deviceId) {
  return call(__func__, kInit, [&] {
    require_pointer(context, "context");
    require_device(deviceId);
    auto* created = new Context(deviceId);
    remember(created->default_stream);
    add_handle(Kind::kContext, created);
    *context = current = created;
  });
}

aclError aclrtDestroyContext(aclrtContext context) {
  return call(__func__, kInit | kCarriedOut, [&] {
    remove_handle(Kind::kContext, context);
    auto* destroyed = static_cast<Context*>(context);
    if (current == destroyed) current = nullptr;
    forget(destroyed->default_stream);
    destroyed->default_stream->finish();
    delete destroyed;
  });
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  return call(__func__, kInit, [&] {
    for (int device = 0; device < device_count(); ++device)
      if (context == primary_context(device)) {
        current = static_cast<Context*>(context);
        return;
      }
    require_live(Kind::kContext, context, "context");
    current = static_cast<Context*>(context);
  });
}

aclError aclrtGetCurrentContext(aclrtContext* context) {
  return call(__func__, kContext, [&] {
    require_pointer(context, "context");
    *context = current;
  });
}

aclError aclrtSynchronizeDevice() {
  return call(__func__, kContext | kCarriedOut, [&] { synchronize_device(-1); });
}

aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout) {
  return call(__func__, kContext | kCarriedOut, [&] { synchronize_device(timeout); });
}

// Streams
// -------------------------------------------------------------------------------------------

aclError aclrtCreateStream(aclrtStream* stream) {
  return call(__func__, kContext, [&] { create_stream(stream); });
}

aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t, uint32_t) {
  return call(__func__, kContext, [&] { create_stream(stream); });
}

aclError aclrtDestroyStream(aclrtStream stream) {
  return call(__func__, kContext | kCarriedOut, [&] { destroy_stream(stream); });
}

aclError aclrtDestroyStreamForce(aclrtStream stream) {
  return call(__func__, kContext | kCarriedOut, [&] { destroy_stream(stream); });
}

aclError aclrtSynchronizeStream(aclrtStream stream) {
  return call(__func__, kContext | kCarriedOut, [&] { stream_of(stream)->synchronize(-1); });
}

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t timeout) {
  return call(__func__, kContext | kCarriedOut, [&] { stream_of(stream)->synchronize(timeout); });
}

aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus* status) {
  return call(__func__, kContext, [&] {
    require_pointer(status, "status");
    *status = stream_of(stream)->idle() ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
  });
}

// Events: destroying, waiting on the host and asking need no context, as in the real runtime.
// --------

aclError aclrtCreateEvent(aclrtEvent* event) {
  return call(__func__, kContext, [&] { create_event(event); });
}

aclError aclrtCreateEventWithFlag(aclrtEvent* event, uint32_t) {
  return call(__func__, kContext, [&] { create_event(event); });
}

aclError aclrtCreateEventExWithFlag(aclrtEvent* event, uint32_t) {
  return call(__func__, kContext, [&] { create_event(event); });
}

aclError aclrtDestroyEvent(aclrtEvent event) {
  return call(__func__, kInit | kCarriedOut, [&] {
    remove_handle(Kind::kEvent, event);
    delete static_cast<EventHandle*>(event);
  });
}

aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream) {
  return call(__func__, kContext, [&] {
    const std::shared_ptr<Event> recorded = event_of(event);
    const StreamPtr on = stream_of(stream);
    {
      std::lock_guard<std::mutex> lock(recorded->mutex);
      ++recorded->recorded;
    }
    on->submit(
        "record",
        [recorded] {
          std::lock_guard<std::mutex> lock(recorded->mutex);
          ++recorded->passed;
          recorded->at = Clock::now();
          recorded->changed.notify_all();
        },
        true);
  });
}

aclError aclrtResetEvent(aclrtEvent event, aclrtStream stream) {
  return call(__func__, kContext, [&] {
    event_of(event);
    stream_of(stream);
  });
}

aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event) {
  return call(__func__, kContext, [&] {
    const std::shared_ptr<Event> awaited = event_of(event);
    const std::uint64_t until = [&] {
      std::lock_guard<std::mutex> lock(awaited->mutex);
      return awaited->recorded;
    }();
    if (until == 0)
      throw Refused{ACL_ERROR_RT_PARAM_INVALID,
                    "the event was never recorded: the stream would wait for ever"};
    stream_of(stream)->submit("wait", [awaited, until] { awaited->wait(until); }, true);
  });
}

aclError aclrtSynchronizeEvent(aclrtEvent event) {
  return call(__func__, kInit | kCarriedOut, [&] {
    const std::shared_ptr<Event> awaited = event_of(event);
    std::uint64_t until = 0;
    {
      std::lock_guard<std::mutex> lock(awaited->mutex);
      until = awaited->recorded;
    }
    awaited->wait(until);
  });
}

aclError aclrtQueryEvent(aclrtEvent event, aclrtEventStatus* status) {
  return call(__func__, kInit, [&] {
    require_pointer(status, "status");
    *status = event_passed(event) ? ACL_EVENT_STATUS_COMPLETE : ACL_EVENT_STATUS_NOT_READY;
  });
}

aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus* status) {
  return call(__func__, kInit, [&] {
    require_pointer(status, "status");
    *status = event_passed(event) ? ACL_EVENT_RECORDED_STATUS_COMPLETE
                                  : ACL_EVENT_RECORDED_STATUS_NOT_READY;
  });
}

aclError aclrtEventElapsedTime(float* ms, aclrtEvent startEvent, aclrtEvent endEvent) {
  return call(__func__, kInit, [&] {
    require_pointer(ms, "ms");
    const std::shared_ptr<Event> start = event_of(startEvent), end = event_of(endEvent);
    if (start->passed == 0 || end->passed == 0)
      throw Refused{ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID, "an event has not been passed yet"};
    *ms = std::chrono::duration<float, std::milli>(end->at - start->at).count();
  });
}
}
