// The thread that watches the watchdogs, and that writes debug dumps when somebody asks for them: another rank through
// the store, or a person through a named pipe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "process_group/dump_signal.h"
#include "process_group/environment.h"
#include "process_group/group_identity.h"

namespace npu::distributed {

/// The pulse of one watchdog.
struct Heartbeat {
  std::atomic<int64_t> last{0};      ///< wall clock
  std::atomic<bool> resting{false};  ///< it has nothing to watch and sleeps
  void Beat() noexcept;
};

/// One per process, from the first group that wants it to the end of the last one.
class HeartbeatMonitor {
 public:
  static HeartbeatMonitor& Instance();

  void Add(const std::shared_ptr<Heartbeat>& heart, const DiagnosisSettings& settings, uint64_t global_rank,
           const c10::intrusive_ptr<c10d::Store>& store);
  /// Ends the thread with the last heart, and waits for it.
  void Remove(const std::shared_ptr<Heartbeat>& heart);

 private:
  void Run();
  void CheckHearts();
  void Poll();
  void OpenPipe();
  void ClosePipe();
  bool PipeAsks();

  std::mutex life_;  // guards the start and the end of the thread
  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<std::shared_ptr<Heartbeat>> hearts_;
  bool stop_ = false;
  DiagnosisSettings settings_;
  uint64_t global_rank_ = 0;
  std::unique_ptr<DumpSignal> signal_;
  std::string pipe_path_;
  int pipe_ = -1;
  std::thread thread_;
};

}  // namespace npu::distributed
