// A device's engine for large copies: they run beside the compute engine, which keeps its cores for kernels.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

#include "inbox.h"
#include "npu/driver.h"

namespace npu::host {

class Stream;

class CopyEngine {
 public:
  void configure(int device, int64_t spin_ns);
  void stop();  // every stream must be drained
  // Takes over the ownership of `stream`.  Starts the thread on first use; throws std::system_error, and then
  // the ownership stays with the caller.
  void serve(Stream& stream);

 private:
  void loop();

  Inbox inbox_;
  std::mutex start_mutex_;
  std::thread thread_;
  int device_ = 0;
  int64_t spin_ns_ = 0;
};

}  // namespace npu::host
