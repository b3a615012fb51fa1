#include "process_group/watchdog.h"

#include <cstdio>
#include <cstdlib>

#include "process_group/work.h"

namespace npu::distributed {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kInterval{500};
// After a failure (not a time-out) the program gets this long to see the exception, print it and leave by itself;
// a process that is stuck or ignores it is then ended.
constexpr std::chrono::seconds kGrace{10};

bool EndsProcess(ErrorHandling handling) {
  return handling == ErrorHandling::kTearDown || handling == ErrorHandling::kTearDownOnly;
}

}  // namespace

Watchdog::Watchdog(int rank, ErrorHandling handling, std::function<void(const std::string&)> abort)
    : rank_(rank), handling_(handling), abort_(std::move(abort)) {
  thread_ = std::thread([this] { Run(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void Watchdog::Add(Entry entry) {
  const std::lock_guard lock(mutex_);
  // An idle watchdog sleeps without limit; a busy one finds the entry at its next round.
  const bool idle = entries_.empty();
  entries_.push_back(std::move(entry));
  if (idle) changed_.notify_all();
}

void Watchdog::Clear() {
  const std::lock_guard lock(mutex_);
  entries_.clear();
}

void Watchdog::Forgive() {
  const std::lock_guard lock(mutex_);
  entries_.clear();
  failed_ = false;
}

void Watchdog::EndProcess(const std::string& reason) const {
  std::fprintf(stderr,
               "[Rank %d] hccl: the process is ended because a collective failed and data of later work could be wrong "
               "(TORCH_HCCL_ASYNC_ERROR_HANDLING=%d). Cause: %s\n",
               rank_, static_cast<int>(handling_), reason.c_str());
  std::fflush(nullptr);
  std::abort();
}

void Watchdog::Handle(const Entry& entry, bool timed_out) {
  if (timed_out) {
    const auto ran = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - entry.begin);
    const std::string text = "[Rank " + std::to_string(rank_) +
                             "] Watchdog caught collective operation timeout: " + entry.description + " ran for " +
                             std::to_string(ran.count()) + " milliseconds before timing out.";
    std::fprintf(stderr, "%s\n", text.c_str());
    if (handling_ != ErrorHandling::kTearDownOnly) abort_(text);
    if (EndsProcess(handling_)) EndProcess(text);
    return;
  }
  if (!EndsProcess(handling_) || failed_) return;
  failed_ = true;
  failure_ = entry.record->text();
  end_process_at_ = Clock::now() + kGrace;
}

void Watchdog::Run() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (entries_.empty() && !failed_) {
      changed_.wait(lock, [this] { return stop_ || !entries_.empty(); });
    } else {
      changed_.wait_for(lock, kInterval, [this] { return stop_; });
    }
    if (stop_) return;
    if (failed_ && Clock::now() > end_process_at_) EndProcess(failure_);
    std::list<Entry> finished;  // released without the lock: a stash may free tensors
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      const auto next = std::next(entry);
      const bool timed_out =
          !entry->record->finished() && entry->timeout.count() > 0 && Clock::now() - entry->begin > entry->timeout;
      if (entry->record->finished() || timed_out) finished.splice(finished.end(), entries_, entry);
      entry = next;
    }
    lock.unlock();
    for (const Entry& entry : finished) {
      const bool timed_out = !entry.record->finished();
      if (timed_out || entry.record->failed()) Handle(entry, timed_out);
      if (entry.stash) entry.stash->Release();
    }
    finished.clear();
    lock.lock();
  }
}

}  // namespace npu::distributed
