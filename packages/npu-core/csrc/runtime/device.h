#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

#include "export.h"
#include "npu/driver.h"
#include "wait.h"

namespace npu {

inline constexpr int kMaxDevices = 64;

// Visible devices (ASCEND_RT_VISIBLE_DEVICES applied).  Never initialises, never throws, leaves fork safe.
NPU_RUNTIME_API int device_count() noexcept;
// Driver number of visible device `device`.
NPU_RUNTIME_API int driver_device(int device);

// Lazy initialisation.  Thread-safe and idempotent; throws in a child forked after initialisation.
NPU_RUNTIME_API void initialize();
NPU_RUNTIME_API bool is_initialized() noexcept;
NPU_RUNTIME_API bool in_bad_fork() noexcept;
// The two steps of the end.  drain waits for all devices and writes errors nobody has asked for to stderr; the devices
// stay usable.  finalize does the same for what came later and ends the driver's threads.
NPU_RUNTIME_API void drain();
NPU_RUNTIME_API void finalize() noexcept;

// Per thread.  current_device does not initialise; set_device checks the range and initialises.
NPU_RUNTIME_API int current_device() noexcept;
NPU_RUNTIME_API void set_device(int device);
NPU_RUNTIME_API int exchange_device(int device);
NPU_RUNTIME_API void unchecked_set_device(int device) noexcept;

// Throws std::out_of_range-like c10 error "Invalid device id" unless 0 <= device < device_count().
NPU_RUNTIME_API void check_device_index(int device);

NPU_RUNTIME_API npu_device_properties device_properties(int device);
NPU_RUNTIME_API bool can_access_peer(int device, int peer);
NPU_RUNTIME_API std::pair<std::size_t, std::size_t> memory_info(int device);  // free, total

// Waits for every stream of the device and throws the first asynchronous error found; afterwards no stream carries one.
NPU_RUNTIME_API void synchronize_device(int device, Wait wait = Wait::Interruptible);

// Drops the queued work of all streams but those for synchronous launches, and makes every later operation on them fail
// with "FORCE STOP." until the device is restarted.  Tasks that run are not interrupted.
NPU_RUNTIME_API void stop_device(int device);
// Also legal when the device was not stopped: then it only drops pending errors.
NPU_RUNTIME_API void restart_device(int device);

// 0 nothing, 1 warn, 2 error: what a call that makes the host wait does (set_sync_debug_mode).
NPU_RUNTIME_API void set_sync_debug_mode(int mode);
NPU_RUNTIME_API int sync_debug_mode() noexcept;
// Called by every operation that makes the host wait for a stream.
NPU_RUNTIME_API void note_host_synchronization();

}  // namespace npu
