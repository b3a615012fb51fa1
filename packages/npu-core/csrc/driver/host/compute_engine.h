// The one thread of the process that runs COMPUTE tasks, and so the only one that ever has a thread team.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

#include "inbox.h"
#include "npu/driver.h"

namespace npu::host {

class Stream;

class ComputeEngine {
 public:
  void start(int64_t spin_ns);
  void stop();  // every stream must be drained
  // Takes over the ownership of `stream`.
  void serve(Stream& stream) { inbox_.put(stream); }

 private:
  void loop();
  void accept_streams();
  bool find_ready(size_t* index);
  void run(size_t index);
  void remove(size_t index);
  void detach_idle();
  bool any_pending() const;

  Inbox inbox_;
  std::thread thread_;
  int64_t spin_ns_ = 0;

  // The rest belongs to the thread.  Streams it owns or polls, sorted by priority.
  std::vector<Stream*> streams_;
  size_t cursor_ = 0;  // where the round robin goes on
  unsigned rounds_ = 0;
  bool stop_ = false;
  npu_error scratch_{};
};

}  // namespace npu::host
