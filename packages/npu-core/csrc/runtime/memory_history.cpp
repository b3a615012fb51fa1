#include "memory_history.h"

#include <chrono>
#include <mutex>

namespace npu {

std::atomic<bool> g_history_on{false};

namespace {

struct Settings {
  std::mutex mutex;
  HistoryOptions options;
};

Settings& settings() {
  static auto* instance = new Settings;  // outlives static destructors, which may free tensors
  return *instance;
}

}  // namespace

void set_history_options(const HistoryOptions& options) {
  std::lock_guard lock(settings().mutex);
  settings().options = options;
  g_history_on.store(options.on(), std::memory_order_relaxed);
}

HistoryOptions history_options() {
  std::lock_guard lock(settings().mutex);
  return settings().options;
}

Context gather_context(RecordContext level) {
  const HistoryOptions options = history_options();
  if (options.gather == nullptr || options.level < level) return nullptr;
  return options.gather();
}

void MemoryHistory::configure(const HistoryOptions& options, bool clear) {
  options_ = options;
  if (clear || !options.events) entries_.clear();
  while (entries_.size() > options.max_entries) entries_.pop_front();
}

void MemoryHistory::record(TraceEntry::Action action, std::size_t address, std::size_t size, Stream* stream,
                           c10::MempoolId_t pool, const Context& context) {
  if (!options_.events || options_.max_entries == 0) return;
  if ((options_.skipped_actions >> static_cast<unsigned>(action) & 1) != 0) return;
  if (entries_.size() >= options_.max_entries) entries_.pop_front();
  auto& entry = entries_.emplace_back(action, device_, address, size, stream, pool, c10::approx_time_t{},
                                      options_.level >= RecordContext::ALLOC ? context : nullptr);
  // Microseconds of the wall clock, as readers of a trace expect.
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  entry.time_.t_ = std::chrono::duration_cast<std::chrono::microseconds>(now).count();
}

}  // namespace npu
