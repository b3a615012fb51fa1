#include "record_store.h"

#include <algorithm>
#include <cstring>

namespace npu::profiler {
namespace {

template <typename T>
size_t copy_range(const std::deque<T>& source, size_t first, size_t capacity, T* out) {
  if (first >= source.size()) return 0;
  const size_t count = std::min(capacity, source.size() - first);
  std::copy_n(source.begin() + static_cast<std::ptrdiff_t>(first), count, out);
  return count;
}

}  // namespace

void RecordStore::append(const npu_trace_record* records, size_t count, std::string_view ignored_name) {
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < count; ++i) {
    const npu_trace_record& from = records[i];
    const std::string_view name(from.name, strnlen(from.name, sizeof from.name));
    if (name == ignored_name) continue;
    npu_profiler_record& to = records_.emplace_back();
    to.begin_ns = from.begin_ns;
    to.end_ns = from.end_ns;
    to.submit_ns = from.submit_ns;
    to.correlation = from.correlation;
    to.stream_id = from.stream_id;
    to.value = from.value;
    to.kind = from.kind;
    to.device = from.device;
    to.thread_id = from.thread_id;
    to.task_kind = from.task_kind;
    to.name = intern(name);
    to.reserved = 0;
  }
}

void RecordStore::append_marker(uint64_t token, uint64_t time_ns) {
  const std::lock_guard lock(mutex_);
  markers_.push_back({token, time_ns});
}

size_t RecordStore::record_count() const {
  const std::lock_guard lock(mutex_);
  return records_.size();
}

size_t RecordStore::copy_records(size_t first, size_t capacity, npu_profiler_record* out) const {
  const std::lock_guard lock(mutex_);
  return copy_range(records_, first, capacity, out);
}

size_t RecordStore::marker_count() const {
  const std::lock_guard lock(mutex_);
  return markers_.size();
}

size_t RecordStore::copy_markers(size_t first, size_t capacity, npu_profiler_marker_time* out) const {
  const std::lock_guard lock(mutex_);
  return copy_range(markers_, first, capacity, out);
}

uint32_t RecordStore::name_count() const {
  const std::lock_guard lock(mutex_);
  return static_cast<uint32_t>(names_.size());
}

const char* RecordStore::name(uint32_t index) const {
  const std::lock_guard lock(mutex_);
  return index < names_.size() ? names_[index]->c_str() : nullptr;
}

void RecordStore::clear() {
  const std::lock_guard lock(mutex_);
  records_.clear();
  records_.shrink_to_fit();
  markers_.clear();
  markers_.shrink_to_fit();
  names_.clear();
  name_index_.clear();
}

uint32_t RecordStore::intern(std::string_view name) {
  const auto known = name_index_.find(name);
  if (known != name_index_.end()) return known->second;
  const auto index = static_cast<uint32_t>(names_.size());
  const auto added = name_index_.emplace(std::string(name), index).first;
  names_.push_back(&added->first);
  return index;
}

}  // namespace npu::profiler
