#include "process_group/heartbeat_monitor.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "process_group/call_record.h"
#include "process_group/debug_dump.h"
#include "process_group/per_process.h"

namespace npu::distributed {

void Heartbeat::Beat() noexcept { last.store(WallClock(), std::memory_order_relaxed); }

HeartbeatMonitor& HeartbeatMonitor::Instance() {
  static PerProcess<HeartbeatMonitor> monitor;
  return monitor.Get();
}

void HeartbeatMonitor::Add(const std::shared_ptr<Heartbeat>& heart, const DiagnosisSettings& settings,
                           uint64_t global_rank, const c10::intrusive_ptr<c10d::Store>& store) {
  const std::lock_guard life(life_);
  {
    const std::lock_guard lock(mutex_);
    hearts_.push_back(heart);
    if (hearts_.size() > 1) return;
    stop_ = false;
  }
  settings_ = settings;
  global_rank_ = global_rank;
  signal_ = std::make_unique<DumpSignal>(store);
  OpenPipe();
  thread_ = std::thread([this] { Run(); });
}

void HeartbeatMonitor::Remove(const std::shared_ptr<Heartbeat>& heart) {
  const std::lock_guard life(life_);
  {
    const std::lock_guard lock(mutex_);
    if (hearts_.remove(heart) == 0 || !hearts_.empty()) return;
    stop_ = true;
    changed_.notify_all();
  }
  thread_.join();
  signal_.reset();
  ClosePipe();
}

void HeartbeatMonitor::Run() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, settings_.coordination, [this] { return stop_; })) {
    CheckHearts();
    lock.unlock();
    Poll();
    lock.lock();
  }
}

void HeartbeatMonitor::CheckHearts() {
  const int64_t limit = std::chrono::nanoseconds(settings_.heartbeat_timeout).count();
  const int64_t now = WallClock();
  for (const auto& heart : hearts_) {
    if (heart->resting.load() || now - heart->last.load() < limit) continue;
    std::fprintf(stderr,
                 "[Rank %d] hccl: the watchdog of a process group has been stuck for %lld seconds "
                 "(TORCH_HCCL_HEARTBEAT_TIMEOUT_SEC), so the monitor ends the process\n",
                 static_cast<int>(global_rank_), static_cast<long long>(settings_.heartbeat_timeout.count()));
    WriteDebugDump(settings_, global_rank_);
    std::fflush(nullptr);
    std::abort();
  }
}

void HeartbeatMonitor::Poll() {
  if (settings_.dump_on_timeout && signal_->Raised()) {
    WriteDebugDump(settings_, global_rank_);
    signal_->Acknowledge();
  }
  if (PipeAsks()) WriteDebugDump(settings_, global_rank_);
}

void HeartbeatMonitor::OpenPipe() {
  if (settings_.pipe_stem.empty()) return;
  pipe_path_ = settings_.pipe_stem + std::to_string(global_rank_) + ".pipe";
  unlink(pipe_path_.c_str());  // of an earlier run
  if (mkfifo(pipe_path_.c_str(), 0600) == 0) pipe_ = open(pipe_path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (pipe_ < 0) {
    std::fprintf(stderr, "hccl: warning: %s (TORCH_HCCL_DEBUG_INFO_PIPE_FILE) could not be opened: %s\n",
                 pipe_path_.c_str(), std::strerror(errno));
  }
}

void HeartbeatMonitor::ClosePipe() {
  if (pipe_ >= 0) close(pipe_);
  pipe_ = -1;
  if (!pipe_path_.empty()) unlink(pipe_path_.c_str());
  pipe_path_.clear();
}

bool HeartbeatMonitor::PipeAsks() {
  if (pipe_ < 0) return false;
  bool asked = false;
  char text[256];
  while (read(pipe_, text, sizeof text) > 0) asked = true;
  return asked;
}

}  // namespace npu::distributed
