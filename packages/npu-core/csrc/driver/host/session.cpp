#include "session.h"

#include <pthread.h>

#include <new>
#include <system_error>

#include "engine_thread.h"
#include "error.h"
#include "futex.h"
#include "machine_memory.h"

namespace npu::host {

Session& Session::instance() {
  static Session* session = new Session;
  return *session;
}

Session::Session() {
  devices_.reserve(kMaxDevices);
  for (int index = 0; index < kMaxDevices; ++index) {
    devices_.push_back(std::make_unique<Device>(index, compute_engine_));
  }
  // A child has none of the threads and maybe locked locks: it may touch nothing but the phase.
  pthread_atfork(nullptr, nullptr, [] {
    Session& session = instance();
    if (session.phase_.load() != Phase::never_started) session.phase_.store(Phase::forked);
  });
}

npu_status Session::explain(const char* call) const {
  switch (phase_.load()) {
    case Phase::forked:
      return fail(
          NPU_ERROR_STOPPED,
          "%s: this process was forked from one that had initialised the npu driver, whose threads do not survive "
          "a fork. Use the \"spawn\" or \"forkserver\" start method, or fork before the first use of the device",
          call);
    case Phase::stopped:
      return fail(NPU_ERROR_STOPPED, "%s: the npu driver was shut down", call);
    default:
      return fail(NPU_ERROR_STOPPED, "%s: the npu driver is not initialised; call initialize first", call);
  }
}

npu_status Session::start() {
  if (forked()) return explain("initialize");
  std::lock_guard lock(lifecycle_);
  if (phase_.load() == Phase::running) return NPU_OK;
  npu_status status = read_configuration(&configuration_);
  if (status != NPU_OK) return status;
  prepare_fences();
  status = open_devices();
  if (status == NPU_OK) {
    try {
      compute_engine_.start(configuration_.spin_ns);
    } catch (const std::system_error& error) {
      status = fail(NPU_ERROR_SYSTEM, "initialize: cannot start the compute engine's thread: %s", error.what());
    }
  }
  if (status != NPU_OK) {
    for (auto& device : devices_) device->arena.close();
    return status;
  }
  phase_.store(Phase::running, std::memory_order_release);
  return NPU_OK;
}

npu_status Session::open_devices() {
  for (int index = 0; index < configuration_.device_count; ++index) {
    Device& device = *devices_[static_cast<size_t>(index)];
    npu_status status = device.arena.open(index, configuration_.memory_bytes);
    if (status != NPU_OK) return status;
    device.copy_engine.configure(index, configuration_.spin_ns);
    device.faults.clear();
  }
  return NPU_OK;
}

npu_status Session::stop() {
  if (forked()) return NPU_OK;  // nothing of it runs here
  std::lock_guard lock(lifecycle_);
  if (phase_.load() != Phase::running) return NPU_OK;
  if (thread_role().is_engine || thread_role().stream != nullptr) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "shutdown: called from a task, which it would have to wait for");
  }
  phase_.store(Phase::stopped, std::memory_order_release);
  std::vector<Stream*> streams;
  {
    std::lock_guard streams_lock(streams_mutex_);
    streams.assign(streams_.begin(), streams_.end());
    for (Stream* stream : streams) stream->retain();
    streams_.clear();
  }
  for (auto& device : devices_) device->faults.clear();  // nobody is left to end a delay
  // All are closed before any is drained: a stream may wait for an event of another one, never for a later task.
  for (Stream* stream : streams) stream->close();
  for (Stream* stream : streams) stream->drain();
  for (Stream* stream : streams) stream->end_thread();
  for (auto& device : devices_) device->copy_engine.stop();
  compute_engine_.stop();
  for (Stream* stream : streams) {
    stream->free_ring();
    stream->release();
  }
  peer_memory_.close_all();
  for (auto& device : devices_) device->arena.close();
  return NPU_OK;
}

Device* Session::device(const char* call, int32_t index) {
  if (index >= 0 && index < configuration_.device_count) [[likely]]
    return devices_[static_cast<size_t>(index)].get();
  fail(NPU_ERROR_INVALID_ARGUMENT, "%s: device %d, expected 0 to %d", call, index, configuration_.device_count - 1);
  return nullptr;
}

Device* Session::device_of(const void* address, size_t bytes) {
  for (int index = 0; index < configuration_.device_count; ++index) {
    Device& device = *devices_[static_cast<size_t>(index)];
    if (device.arena.owns(address, bytes)) return &device;
  }
  return nullptr;
}

npu_status Session::check_machine_memory() {
  size_t available = available_machine_memory();
  size_t promised = 0;
  for (int index = 0; index < configuration_.device_count; ++index) {
    promised += devices_[static_cast<size_t>(index)]->arena.promised_bytes();
  }
  if (available >= kMemoryMargin && available - kMemoryMargin >= promised) return NPU_OK;
  return fail(
      NPU_ERROR_OUT_OF_MEMORY,
      "the machine cannot back the device memory asked for: with it %llu MiB of mapped memory wait to be touched, "
      "%llu MiB of the machine's memory are available, and %llu MiB of that stay in reserve",
      static_cast<unsigned long long>(promised >> 20), static_cast<unsigned long long>(available >> 20),
      static_cast<unsigned long long>(kMemoryMargin >> 20));
}

npu_status Session::add_stream(Device& device, int32_t priority, Stream** stream) {
  std::lock_guard lock(streams_mutex_);
  npu_status status = check("stream_create");  // again under the lock: shutdown takes it after changing the phase
  if (status != NPU_OK) return status;
  auto* created = new (std::nothrow) Stream(device, priority, configuration_.spin_ns);
  if (created == nullptr) return fail(NPU_ERROR_OUT_OF_MEMORY, "stream_create: no host memory for a stream");
  streams_.insert(created);
  *stream = created;
  return NPU_OK;
}

void Session::remove_stream(Stream* stream) {
  std::lock_guard lock(streams_mutex_);
  streams_.erase(stream);
}

}  // namespace npu::host
