// Looks after the works of one group: notices time-outs and failures that nobody waits for.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include "process_group/call_record.h"
#include "process_group/environment.h"

namespace npu::distributed {

class GroupDiagnosis;
class TensorStash;

class Watchdog {
 public:
  enum class Status : int { kInit = 0, kRun = 1, kStop = 2 };

  struct Entry {
    std::shared_ptr<CallRecord> record;
    std::shared_ptr<TensorStash> stash;
    c10d::OpType op = c10d::OpType::UNKNOWN;
    uint64_t sequence = 0;
    bool is_transfer = false;
    const char* fused_operator = nullptr;  ///< a step of it, which has neither type nor number of its own
    std::chrono::milliseconds timeout{};   ///< zero: never
    std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now();

    std::string Name() const { return fused_operator != nullptr ? fused_operator : c10d::opTypeToString(op); }
    std::string Describe() const;
  };

  /// What the watchdog needs of its group.
  struct Group {
    int rank = 0;
    ErrorHandling handling = ErrorHandling::kTearDown;
    GroupDiagnosis* diagnosis = nullptr;
    std::function<void(const std::string&)> abort;  ///< ends the communicators with a reason
  };

  explicit Watchdog(Group group);
  /// Stops without looking at works again.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  void Add(Entry entry);
  /// Forgets the works that are pending now.
  void Clear();
  /// Tells the watchdog that a failure has been dealt with (group aborted or rebuilt).
  void Forgive();
  /// kStop: works are kept but not looked at until kRun.
  void SetStatus(Status status);
  /// Whether a work has failed, nobody has dealt with that, and the process is to end for it.
  bool MustEndProcess();
  /// Writes why, and ends the process with SIGABRT.
  [[noreturn]] void EndProcess();

 private:
  void Run();
  void Round(std::unique_lock<std::mutex>& lock);
  void HandleTimeout(const Entry& entry);
  void HandleFailure(const Entry& entry, uint64_t forgiven);
  [[noreturn]] void EndProcess(const std::string& reason) const;

  const Group group_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Entry> entries_;
  Status status_ = Status::kInit;
  bool stop_ = false;
  bool failed_ = false;
  uint64_t forgiven_ = 0;  ///< how often
  std::string failure_;
  std::chrono::steady_clock::time_point end_process_at_{};
  std::thread thread_;
};

}  // namespace npu::distributed
