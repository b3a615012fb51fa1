// Failures and delays on request, to test what users of the driver do about them.
#pragma once

#include <atomic>
#include <mutex>
#include <vector>

#include "futex.h"
#include "npu/driver.h"

namespace npu::host {

class FaultInjection {
 public:
  npu_status add(const npu_fault& fault);  // NPU_FAULT_NONE removes all
  void clear();                            // also ends delays under way

  // One relaxed load when nothing is injected.
  bool active() const { return active_.load(std::memory_order_relaxed); }

  // What is to happen to the task about to run: waits out delays and returns the status of a failure, or NPU_OK.
  npu_status strike_task(const char* name);
  // True when this memory_map call is to fail.
  bool strike_map();

 private:
  // Takes one strike of the first fault of `kind` that matches; false when there is none.
  bool take(int32_t kind, const char* name, npu_fault* taken);

  std::atomic<bool> active_{false};
  std::mutex mutex_;
  std::vector<npu_fault> faults_;
  std::atomic<uint32_t> cleared_{0};  // how often; delayed tasks sleep on it
};

}  // namespace npu::host
