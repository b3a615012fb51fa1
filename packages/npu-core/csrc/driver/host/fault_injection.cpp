#include "fault_injection.h"

#include <algorithm>
#include <cstring>

#include "clock.h"
#include "error.h"

namespace npu::host {

npu_status FaultInjection::add(const npu_fault& fault) {
  if (fault.kind == NPU_FAULT_NONE) {
    clear();
    return NPU_OK;
  }
  if (fault.kind < NPU_FAULT_NONE || fault.kind > NPU_FAULT_FAIL_MAP) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "inject_fault: unknown kind %d, expected an npu_fault_kind (0..%d)",
                fault.kind, NPU_FAULT_FAIL_MAP);
  }
  if (fault.count == 0 || fault.count < -1) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "inject_fault: count is %lld, expected a positive number or -1 (no end)",
                static_cast<long long>(fault.count));
  }
  if (fault.kind == NPU_FAULT_FAIL_TASK &&
      (fault.status <= NPU_OK || fault.status > NPU_ERROR_STOPPED || fault.status == NPU_ERROR_NOT_READY)) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "inject_fault: status %d is not one a task can fail with", fault.status);
  }
  if (memchr(fault.match, '\0', sizeof(fault.match)) == nullptr) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "inject_fault: match is not terminated within %zu bytes",
                sizeof(fault.match));
  }
  std::lock_guard lock(mutex_);
  faults_.push_back(fault);
  active_.store(true, std::memory_order_release);
  return NPU_OK;
}

void FaultInjection::clear() {
  std::lock_guard lock(mutex_);
  faults_.clear();
  active_.store(false, std::memory_order_release);
  cleared_.fetch_add(1, std::memory_order_release);
  futex_wake_all(cleared_);
}

bool FaultInjection::take(int32_t kind, const char* name, npu_fault* taken) {
  std::lock_guard lock(mutex_);
  for (auto fault = faults_.begin(); fault != faults_.end(); ++fault) {
    if (fault->kind != kind || (name != nullptr && strstr(name, fault->match) == nullptr)) continue;
    *taken = *fault;
    if (fault->count > 0 && --fault->count == 0) faults_.erase(fault);
    if (faults_.empty()) active_.store(false, std::memory_order_release);
    return true;
  }
  return false;
}

npu_status FaultInjection::strike_task(const char* name) {
  if (name == nullptr) return NPU_OK;
  npu_fault fault;
  uint32_t before = cleared_.load(std::memory_order_acquire);
  if (take(NPU_FAULT_DELAY_TASK, name, &fault)) {
    // On the engine's own thread: a delayed task occupies its engine as a slow one would.  clear() ends the delay.
    constexpr uint64_t kLongest = uint64_t{1} << 60;
    int64_t deadline = now_ns() + static_cast<int64_t>(std::min(fault.delay_ns, kLongest));
    while (cleared_.load(std::memory_order_acquire) == before && futex_wait(cleared_, before, deadline)) {
    }
  }
  return take(NPU_FAULT_FAIL_TASK, name, &fault) ? static_cast<npu_status>(fault.status) : NPU_OK;
}

bool FaultInjection::strike_map() {
  npu_fault fault;
  return active() && take(NPU_FAULT_FAIL_MAP, nullptr, &fault);
}

}  // namespace npu::host
