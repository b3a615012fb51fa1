#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

#include "export.h"
#include "npu/driver.h"

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
// Drains the devices and ends the driver's threads.  Called at interpreter exit; errors go to stderr.
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

// Waits for every stream of the device and throws the first asynchronous error found.
NPU_RUNTIME_API void synchronize_device(int device);

// 0 nothing, 1 warn, 2 error: what a call that makes the host wait does (set_sync_debug_mode).
NPU_RUNTIME_API void set_sync_debug_mode(int mode);
NPU_RUNTIME_API int sync_debug_mode() noexcept;
// Called by every operation that makes the host wait for a stream.
NPU_RUNTIME_API void note_host_synchronization();

}  // namespace npu
