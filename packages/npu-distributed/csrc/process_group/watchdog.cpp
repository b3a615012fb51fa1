#include "process_group/watchdog.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "process_group/group_diagnosis.h"
#include "process_group/work.h"

namespace npu::distributed {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kForceStop = "FORCE STOP";
constexpr std::chrono::milliseconds kInterval{1000};
// A collective that is aborted ends within the time its waits take to look around; one that has not begun does not.
constexpr std::chrono::milliseconds kAbortPatience{500};
// After a failure (not a time-out) the program gets this long to see the exception, print it and leave by itself;
// a process that is stuck or ignores it is then ended.
constexpr std::chrono::seconds kGrace{10};

/// Whether this is a failure, and not what stop_device has done here or on a peer on purpose.
bool HasFailed(const CallRecord& record) {
  return record.failed() && record.text().find(kForceStop) == std::string::npos;
}

bool EndsProcess(ErrorHandling handling) {
  return handling == ErrorHandling::kTearDown || handling == ErrorHandling::kTearDownOnly;
}

}  // namespace

std::string Watchdog::Entry::Describe() const {
  if (fused_operator == nullptr) return DescribeCall(op, sequence, timeout);
  return Name() + " (Timeout(ms)=" + std::to_string(timeout.count()) + ")";
}

Watchdog::Watchdog(Group group) : group_(std::move(group)) {
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
  if (status_ == Status::kInit) status_ = Status::kRun;
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
  ++forgiven_;
}

void Watchdog::SetStatus(Status status) {
  const std::lock_guard lock(mutex_);
  status_ = status;
  changed_.notify_all();
}

bool Watchdog::MustEndProcess() {
  if (!EndsProcess(group_.handling)) return false;
  const std::lock_guard lock(mutex_);
  if (failed_) return true;
  const auto failed =
      std::find_if(entries_.begin(), entries_.end(), [](const Entry& e) { return HasFailed(*e.record); });
  if (failed == entries_.end()) return false;
  failure_ = failed->record->text();
  return true;
}

void Watchdog::EndProcess() {
  std::unique_lock lock(mutex_);
  const std::string reason = failure_;
  const bool reported = failed_;
  lock.unlock();
  if (!reported) group_.diagnosis->Fail(reason);
  EndProcess(reason);
}

void Watchdog::EndProcess(const std::string& reason) const {
  std::fprintf(stderr,
               "[Rank %d] hccl: the process is ended because a collective failed and data of later work could be wrong "
               "(TORCH_HCCL_ASYNC_ERROR_HANDLING=%d). Cause: %s\n",
               group_.rank, static_cast<int>(group_.handling), reason.c_str());
  std::fflush(nullptr);
  std::abort();
}

void Watchdog::HandleTimeout(const Entry& entry) {
  const auto ran = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - entry.begin);
  const std::string text = "[Rank " + std::to_string(group_.rank) +
                           "] Watchdog caught collective operation timeout: " + entry.Describe() + " ran for " +
                           std::to_string(ran.count()) + " milliseconds before timing out.";
  std::fprintf(stderr, "%s\n", text.c_str());
  const bool is_counted = !entry.is_transfer && entry.fused_operator == nullptr;
  const std::string lag =
      is_counted ? group_.diagnosis->DescribeLag(static_cast<int64_t>(entry.sequence), entry.Name()) : "";
  if (!lag.empty()) std::fprintf(stderr, "[Rank %d] %s\n", group_.rank, lag.c_str());
  group_.diagnosis->Fail(text);
  if (group_.handling != ErrorHandling::kTearDownOnly) {
    group_.abort(text);
    // The task that is ended knows for whom it has waited.
    if (entry.record->WaitFor(kAbortPatience)) std::fprintf(stderr, "%s\n", entry.record->text().c_str());
  }
  if (EndsProcess(group_.handling)) EndProcess(text);
}

void Watchdog::HandleFailure(const Entry& entry, uint64_t forgiven) {
  const std::string text = entry.record->text();
  {
    const std::lock_guard lock(mutex_);
    if (failed_ || forgiven != forgiven_) return;  // the group was rebuilt after this round had taken out the entry
    failed_ = EndsProcess(group_.handling);
    failure_ = text;
    end_process_at_ = Clock::now() + kGrace;
  }
  group_.diagnosis->Fail("[Rank " + std::to_string(group_.rank) + "] " + entry.Describe() + " failed: " + text);
}

void Watchdog::Round(std::unique_lock<std::mutex>& lock) {
  if (failed_ && Clock::now() > end_process_at_) EndProcess(failure_);
  std::list<Entry> ended;  // released without the lock: a stash may free tensors
  const Entry* oldest = nullptr;
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const auto next = std::next(entry);
    const bool finished = entry->record->finished();
    const bool timed_out = !finished && entry->timeout.count() > 0 && Clock::now() - entry->begin > entry->timeout;
    if (!finished && oldest == nullptr) oldest = &*entry;
    if (finished || timed_out) ended.splice(ended.end(), entries_, entry);
    entry = next;
  }
  const uint64_t forgiven = forgiven_;
  const std::string waiting = oldest != nullptr ? oldest->Name() : "";
  lock.unlock();
  for (const Entry& entry : ended) {
    if (!entry.record->finished()) {
      HandleTimeout(entry);
    } else if (HasFailed(*entry.record)) {
      HandleFailure(entry, forgiven);
    }
    group_.diagnosis->Retire(entry.record.get());
    if (entry.stash) entry.stash->Release();
  }
  group_.diagnosis->Tick(waiting);
  ended.clear();
  lock.lock();
}

void Watchdog::Run() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    Heartbeat& heart = group_.diagnosis->heart();
    const bool rests = entries_.empty() && !failed_ && !group_.diagnosis->wants_ticks();
    heart.resting.store(rests);
    if (rests) {
      changed_.wait(lock, [this] { return stop_ || !entries_.empty(); });
    } else {
      // The next round, or sooner when a work's time is over.
      Clock::time_point wake = Clock::now() + kInterval;
      for (const Entry& entry : entries_) {
        if (status_ == Status::kStop) break;
        if (entry.timeout.count() > 0)
          wake = std::min(wake, entry.begin + entry.timeout + std::chrono::milliseconds(1));
      }
      changed_.wait_until(lock, std::max(wake, Clock::now() + std::chrono::milliseconds(10)), [this] { return stop_; });
    }
    heart.Beat();
    heart.resting.store(false);
    if (stop_) return;
    if (status_ == Status::kStop) continue;
    Round(lock);
  }
}

}  // namespace npu::distributed
