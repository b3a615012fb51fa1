#pragma once
#include <cstdint>

#include "export.h"
#include "npu/driver.h"

namespace npu {

// Whether a wait of the host may end before the device is done, because the user interrupts the program.  Only a caller
// whose queued tasks use nothing that dies with the call may choose Interruptible.
enum class Wait { Uninterrupted, Interruptible };

// Called now and then by interruptible waits; throws to end the wait.  Set once, by the language bindings.
using InterruptCheck = void (*)();
NPU_RUNTIME_API void set_interrupt_check(InterruptCheck check) noexcept;
NPU_RUNTIME_API InterruptCheck interrupt_check() noexcept;

constexpr std::int64_t kForeverNs = -1;
constexpr std::int64_t kWaitSliceNs = 50'000'000;

// `wait(timeout_ns)` returns the driver's status.
template <class Body>
npu_status wait_for_device(Wait kind, Body&& wait) {
  const InterruptCheck check = kind == Wait::Interruptible ? interrupt_check() : nullptr;
  if (check == nullptr) return wait(kForeverNs);
  for (;;) {
    const npu_status status = wait(kWaitSliceNs);
    if (status != NPU_ERROR_TIMEOUT) return status;
    check();
  }
}

}  // namespace npu
