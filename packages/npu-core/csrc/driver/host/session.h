// The driver's state between initialize and shutdown.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <vector>

#include "compute_engine.h"
#include "configuration.h"
#include "device.h"
#include "npu/driver.h"
#include "peer_memory.h"
#include "stream.h"

namespace npu::host {

// There is one, and it is never destroyed: threads of the driver and of the application may outlive static
// destruction.  A new start reuses its devices, so that no call that races with shutdown meets freed memory.
class Session {
 public:
  static Session& instance();

  npu_status start();
  npu_status stop();

  // NPU_OK while running; otherwise NPU_ERROR_STOPPED and a text that says why.
  npu_status check(const char* call) const {
    if (running()) [[likely]]
      return NPU_OK;
    return explain(call);
  }
  bool running() const { return phase_.load(std::memory_order_acquire) == Phase::running; }
  bool forked() const { return phase_.load(std::memory_order_relaxed) == Phase::forked; }

  const Configuration& configuration() const { return configuration_; }
  // nullptr, and a text, when there is no such device.
  Device* device(const char* call, int32_t index);
  Device* device_of(const void* address, size_t bytes);
  PeerMemory& peer_memory() { return peer_memory_; }
  // NPU_OK when the machine can back all device memory that is mapped.
  npu_status check_machine_memory();

  npu_status add_stream(Device& device, int32_t priority, Stream** stream);
  void remove_stream(Stream* stream);

 private:
  enum class Phase { never_started, running, stopped, forked };

  Session();
  npu_status open_devices();
  npu_status explain(const char* call) const;

  std::atomic<Phase> phase_{Phase::never_started};
  std::mutex lifecycle_;
  Configuration configuration_;
  ComputeEngine compute_engine_;
  std::vector<std::unique_ptr<Device>> devices_;  // kMaxDevices; the first device_count are open
  PeerMemory peer_memory_;

  std::mutex streams_mutex_;
  std::unordered_set<Stream*> streams_;
};

}  // namespace npu::host
