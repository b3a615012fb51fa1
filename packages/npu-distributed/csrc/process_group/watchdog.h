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

#include "process_group/call_record.h"
#include "process_group/environment.h"

namespace npu::distributed {

class TensorStash;

class Watchdog {
 public:
  struct Entry {
    std::shared_ptr<CallRecord> record;
    std::shared_ptr<TensorStash> stash;
    std::string description;
    std::chrono::milliseconds timeout{};  ///< zero: never
    std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now();
  };

  /// `abort` ends the group's communicators with a reason.
  Watchdog(int rank, ErrorHandling handling, std::function<void(const std::string&)> abort);
  /// Stops without looking at works again.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  void Add(Entry entry);
  /// Forgets the works that are pending now.
  void Clear();
  /// Tells the watchdog that a failure has been dealt with (group aborted or rebuilt).
  void Forgive();

 private:
  void Run();
  void Handle(const Entry& entry, bool timed_out);
  [[noreturn]] void EndProcess(const std::string& reason) const;

  const int rank_;
  const ErrorHandling handling_;
  const std::function<void(const std::string&)> abort_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Entry> entries_;
  bool stop_ = false;
  bool failed_ = false;
  std::string failure_;
  std::chrono::steady_clock::time_point end_process_at_{};
  std::thread thread_;
};

}  // namespace npu::distributed
