#include "device.h"

#include <c10/util/Exception.h>
#include <pthread.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "driver_loader.h"
#include "error.h"
#include "stream_table.h"

namespace npu {
namespace {

std::mutex g_mutex;
std::atomic<bool> g_initialized{false};
std::atomic<bool> g_finalized{false};
std::atomic<bool> g_bad_fork{false};
std::atomic<bool> g_interrupted_exit{false};
std::atomic<int> g_sync_debug_mode{0};
std::vector<int> g_visible;  // fixed once initialised
thread_local int tl_device = 0;

// ASCEND_RT_VISIBLE_DEVICES: unset = all; ids must ascend; parsing stops at the first other character; an id beyond
// the physical count truncates; a list that does not ascend hides everything.
std::vector<int> visible_devices() {
  int physical = 0;
  check(driver().device_count(&physical), "device_count");
  std::vector<int> ids;
  const char* mask = std::getenv("ASCEND_RT_VISIBLE_DEVICES");
  if (mask == nullptr) {
    for (int i = 0; i < physical; ++i) ids.push_back(i);
    return ids;
  }
  for (const char* p = mask; *p >= '0' && *p <= '9';) {
    char* end = nullptr;
    const long id = std::strtol(p, &end, 10);
    if (!ids.empty() && id <= ids.back()) return {};
    if (id >= physical) break;
    ids.push_back(static_cast<int>(id));
    p = *end == ',' ? end + 1 : end;
  }
  return ids;
}

void after_fork_in_child() {
  if (g_initialized.load(std::memory_order_relaxed)) {
    g_bad_fork.store(true, std::memory_order_relaxed);
    forget_current_streams();
  }
}

}  // namespace

int device_count() noexcept {
  try {
    if (g_initialized.load(std::memory_order_acquire)) return static_cast<int>(g_visible.size());
    return static_cast<int>(visible_devices().size());
  } catch (const std::exception& e) {
    static std::once_flag warned;
    std::call_once(warned, [&] {
      if (warnings_wanted()) TORCH_WARN("npu: no device is available: ", e.what());
    });
    return 0;
  }
}

int driver_device(int device) {
  initialize();
  check_device_index(device);
  return g_visible[static_cast<size_t>(device)];
}

void initialize() {
  if (C10_LIKELY(g_initialized.load(std::memory_order_acquire) && !g_bad_fork.load(std::memory_order_relaxed))) return;
  TORCH_CHECK(
      !g_bad_fork.load(),
      "Cannot re-initialize NPU in forked subprocess. To use NPU with multiprocessing, you must use the 'spawn' "
      "start method",
      error_suffix(Submodule::PTA, ErrorCode::UNAVAIL));
  std::lock_guard lock(g_mutex);
  if (g_initialized.load(std::memory_order_relaxed)) return;
  TORCH_CHECK(!g_finalized.load(), "npu: the device was shut down and cannot be used any more in this process");
  auto visible = visible_devices();
  TORCH_CHECK(!visible.empty(), "No NPU devices are available: ",
              std::getenv("ASCEND_RT_VISIBLE_DEVICES") != nullptr ? "ASCEND_RT_VISIBLE_DEVICES hides all of them"
                                                                  : "the driver reports none",
              error_suffix(Submodule::PTA, ErrorCode::UNAVAIL));
  npu_error error{};
  if (const npu_status status = driver().initialize(&error); status != NPU_OK) {
    TORCH_CHECK(false, "npu: the driver '", driver_name(), "' failed to initialize: ", error.message,
                error_suffix(Submodule::PTA, ErrorCode::ACL));
  }
  g_visible = std::move(visible);
  static std::once_flag atfork;
  std::call_once(atfork, [] { pthread_atfork(nullptr, nullptr, &after_fork_in_child); });
  g_initialized.store(true, std::memory_order_release);
}

bool is_initialized() noexcept {
  return g_initialized.load(std::memory_order_acquire) && !g_bad_fork.load(std::memory_order_relaxed);
}

bool in_bad_fork() noexcept { return g_bad_fork.load(std::memory_order_relaxed); }

namespace {

void drain_device(int device, Wait wait) {
  for (Stream* stream : live_streams(device)) {
    try {
      wait_and_throw(stream, wait);
    } catch (const c10::Error& e) {
      const char* text = e.what_without_backtrace();
      if (std::strncmp(text, kForceStop, std::strlen(kForceStop)) == 0) continue;  // the user stopped it
      std::fprintf(stderr, "npu: an asynchronous error was pending on npu:%d when the process ended: %s\n", device,
                   text);
    }
  }
}

}  // namespace

void drain() {
  if (!is_initialized()) return;
  try {
    for (int d = 0; d < static_cast<int>(g_visible.size()); ++d) drain_device(d, Wait::Interruptible);
  } catch (...) {
    g_interrupted_exit = true;
    throw;
  }
}

void finalize() noexcept {
  g_finalized = true;
  if (!is_initialized()) return;
  for (int d = 0; d < static_cast<int>(g_visible.size()); ++d) {
    try {
      if (g_interrupted_exit) {
        stop_streams(d);  // the user does not want to wait
      } else {
        drain_device(d, Wait::Uninterrupted);
      }
    } catch (const std::exception& e) {
      std::fprintf(stderr, "npu: the device npu:%d did not shut down cleanly: %s\n", d, e.what());
    }
  }
  driver().shutdown();
}

int current_device() noexcept { return tl_device; }

void check_device_index(int device) {
  const int count = device_count();
  TORCH_CHECK(device >= 0 && device < count, "Invalid device id: npu:", device, " (", count,
              count == 1 ? " device is" : " devices are", " visible)", error_suffix(Submodule::PTA, ErrorCode::PARAM));
}

void set_device(int device) {
  if (device < 0) return;
  initialize();
  check_device_index(device);
  tl_device = device;
}

int exchange_device(int device) {
  const int before = tl_device;
  if (device >= 0 && device != before) {
    check_device_index(device);
    tl_device = device;
  }
  return before;
}

void unchecked_set_device(int device) noexcept {
  if (device >= 0) tl_device = device;
}

npu_device_properties device_properties(int device) {
  check_device_index(device);
  npu_device_properties p{};
  p.struct_size = sizeof(p);
  const int physical =
      is_initialized() ? g_visible[static_cast<size_t>(device)] : visible_devices()[static_cast<size_t>(device)];
  check(driver().device_properties(physical, &p), "device_properties");
  return p;
}

bool can_access_peer(int device, int peer) {
  int can = 0;
  check(driver().peer_access(driver_device(device), driver_device(peer), &can), "peer_access");
  return can != 0;
}

std::pair<std::size_t, std::size_t> memory_info(int device) {
  std::size_t free_bytes = 0, total = 0;
  check(driver().memory_info(driver_device(device), &free_bytes, &total), "memory_info");
  return {free_bytes, total};
}

void synchronize_device(int device, Wait wait) {
  initialize();
  check_device_index(device);
  npu_error first{}, error;
  for (Stream* stream : live_streams(device)) {
    if (wait_and_take_error(stream, wait, &error) && first.status == NPU_OK) first = error;
  }
  if (C10_UNLIKELY(first.status != NPU_OK)) throw_task_error(first, "synchronize");
}

void stop_device(int device) {
  initialize();
  check_device_index(device);
  stop_streams(device);
}

void restart_device(int device) {
  initialize();
  check_device_index(device);
  resume_streams(device);
}

void set_sync_debug_mode(int mode) {
  TORCH_CHECK(mode >= 0 && mode <= 2, "invalid value of debug_mode, expected 0, 1 or 2, but got ", mode);
  g_sync_debug_mode = mode;
}

int sync_debug_mode() noexcept { return g_sync_debug_mode.load(std::memory_order_relaxed); }

void note_host_synchronization() {
  const int mode = g_sync_debug_mode.load(std::memory_order_relaxed);
  if (C10_LIKELY(mode == 0)) return;
  TORCH_CHECK(mode != 2, "called a synchronizing NPU operation", error_suffix(Submodule::PTA, ErrorCode::ACL));
  if (warnings_wanted()) TORCH_WARN("called a synchronizing NPU operation");
}

}  // namespace npu
