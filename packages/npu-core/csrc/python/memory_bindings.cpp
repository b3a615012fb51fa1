#include <cstdint>

#include "bindings.h"
#include "runtime/caching_allocator.h"
#include "runtime/pinned_memory.h"
#include "runtime/stream.h"

namespace npu::python {
namespace {

using c10::CachingAllocator::DurationStat;
using c10::CachingAllocator::Stat;
using c10::CachingAllocator::StatArray;
using c10::CachingAllocator::StatType;
using c10::CachingDeviceAllocator::DeviceStats;

py::dict stat_dict(const Stat& stat) {
  py::dict result;
  result["current"] = stat.current;
  result["peak"] = stat.peak;
  result["allocated"] = stat.allocated;
  result["freed"] = stat.freed;
  return result;
}

py::dict pool_dict(const StatArray& stats) {
  py::dict result;
  result["all"] = stat_dict(stats[static_cast<std::size_t>(StatType::AGGREGATE)]);
  result["small_pool"] = stat_dict(stats[static_cast<std::size_t>(StatType::SMALL_POOL)]);
  result["large_pool"] = stat_dict(stats[static_cast<std::size_t>(StatType::LARGE_POOL)]);
  return result;
}

py::dict stats_dict(const DeviceStats& stats) {
  py::dict result;
  result["num_alloc_retries"] = stats.num_alloc_retries;
  result["num_ooms"] = stats.num_ooms;
  result["num_oom_rejections"] = stats.num_oom_rejections;
  result["max_split_size"] = stats.max_split_size;
  result["num_sync_all_streams"] = stats.num_sync_all_streams;
  result["num_device_alloc"] = stats.num_device_alloc;
  result["num_device_free"] = stats.num_device_free;
  result["allocation"] = pool_dict(stats.allocation);
  result["segment"] = pool_dict(stats.segment);
  result["active"] = pool_dict(stats.active);
  result["inactive_split"] = pool_dict(stats.inactive_split);
  result["allocated_bytes"] = pool_dict(stats.allocated_bytes);
  result["reserved_bytes"] = pool_dict(stats.reserved_bytes);
  result["active_bytes"] = pool_dict(stats.active_bytes);
  result["inactive_split_bytes"] = pool_dict(stats.inactive_split_bytes);
  result["requested_bytes"] = pool_dict(stats.requested_bytes);
  result["oversize_allocations"] = stat_dict(stats.oversize_allocations);
  result["oversize_segments"] = stat_dict(stats.oversize_segments);
  return result;
}

py::dict duration_dict(const DurationStat& stat) {
  py::dict result;
  result["total"] = stat.total;
  result["max"] = stat.max;
  result["min"] = stat.min;
  result["count"] = stat.count;
  result["avg"] = stat.count == 0 ? 0 : stat.total / stat.count;
  return result;
}

py::dict pinned_stats_dict() {
  const PinnedStats stats = pinned_stats();
  py::dict result;
  result["active_requests"] = stat_dict(stats.active_requests);
  result["active_bytes"] = stat_dict(stats.active_bytes);
  result["allocations"] = stat_dict(stats.allocations);
  result["allocated_bytes"] = stat_dict(stats.allocated_bytes);
  result["num_host_alloc"] = stats.num_host_alloc;
  result["num_host_free"] = stats.num_host_free;
  result["host_alloc_time"] = duration_dict(stats.host_alloc_time);
  result["host_free_time"] = duration_dict(stats.host_free_time);
  return result;
}

Stream* stream_from_handle(int device, std::uintptr_t handle) {
  return handle == 0 ? current_stream(device) : reinterpret_cast<Stream*>(handle);
}

}  // namespace

void bind_memory(py::module_& module) {
  module.def("_memory_stats", call([](int device) {
               return stats_dict(caching_allocator().getDeviceStats(static_cast<c10::DeviceIndex>(device)));
             }));
  module.def("_reset_peak_memory_stats",
             call([](int device) { caching_allocator().resetPeakStats(static_cast<c10::DeviceIndex>(device)); }));
  module.def("_reset_accumulated_memory_stats", call([](int device) {
               caching_allocator().resetAccumulatedStats(static_cast<c10::DeviceIndex>(device));
             }));
  module.def("_empty_cache", call_without_gil([] { caching_allocator().emptyCache(); }));
  module.def("_set_memory_fraction",
             call([](double fraction, int device) { caching_allocator().set_memory_fraction(fraction, device); }));
  module.def("_get_memory_fraction", call([](int device) { return caching_allocator().memory_fraction(device); }));

  module.def("_raw_allocate", call_without_gil([](std::size_t bytes, int device, std::uintptr_t stream) {
               return reinterpret_cast<std::uintptr_t>(
                   caching_allocator().raw_allocate(bytes, stream_from_handle(device, stream)));
             }));
  module.def("_raw_free", call_without_gil([](std::uintptr_t address) {
               caching_allocator().raw_free(reinterpret_cast<void*>(address));
             }));
  module.def("_erase_stream", call_without_gil([](std::uintptr_t address, std::int64_t id, int device) {
               caching_allocator().erase_stream(reinterpret_cast<const void*>(address), stream_from_id(device, id));
             }));
  module.def("_owns_address", call([](std::uintptr_t address) {
               void* base = nullptr;
               std::size_t size = 0;
               return caching_allocator().find_block(reinterpret_cast<const void*>(address), &base, &size);
             }));

  module.def("_pinned_stats", call(pinned_stats_dict));
  module.def("_pinned_empty_cache", call_without_gil([] { pinned_empty_cache(); }));
  module.def("_pinned_reset_peak_stats", call([] { pinned_reset_peak_stats(); }));
  module.def("_pinned_reset_accumulated_stats", call([] { pinned_reset_accumulated_stats(); }));
}

}  // namespace npu::python
