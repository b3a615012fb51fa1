#pragma once
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "collector.h"
#include "npu/trace.h"

namespace npu::profiler {

// What one recording has collected.  Every member function is thread-safe.
class RecordStore {
 public:
  // Takes over a batch of the runtime; leaves out the tasks whose name is `ignored_name`.
  void append(const npu_trace_record* records, size_t count, std::string_view ignored_name);
  void append_marker(uint64_t token, uint64_t time_ns);

  size_t record_count() const;
  size_t copy_records(size_t first, size_t capacity, npu_profiler_record* out) const;
  size_t marker_count() const;
  size_t copy_markers(size_t first, size_t capacity, npu_profiler_marker_time* out) const;
  uint32_t name_count() const;
  // Null-terminated, valid until clear(); nullptr for an index out of range.
  const char* name(uint32_t index) const;

  void clear();

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };

  uint32_t intern(std::string_view name);

  mutable std::mutex mutex_;
  // Deques: a growing vector would copy hundreds of megabytes in the middle of a measurement.
  std::deque<npu_profiler_record> records_;
  std::deque<npu_profiler_marker_time> markers_;
  std::unordered_map<std::string, uint32_t, Hash, std::equal_to<>> name_index_;
  std::vector<const std::string*> names_;  // keys of name_index_: their addresses survive a rehash
};

}  // namespace npu::profiler
