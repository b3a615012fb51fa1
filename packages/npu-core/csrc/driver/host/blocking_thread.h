// The thread of one stream for tasks that wait: for peers of a collective, for a host callback.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace npu::host {

class Stream;

class BlockingThread {
 public:
  BlockingThread(Stream& stream, int64_t spin_ns);  // starts it; throws std::system_error
  BlockingThread(const BlockingThread&) = delete;
  BlockingThread& operator=(const BlockingThread&) = delete;
  ~BlockingThread();  // the stream must be drained

  // Passes the ownership of the stream to the thread.
  void serve();

 private:
  static constexpr uint32_t kIdle = 0, kAsleep = 1, kServe = 2, kStop = 3;
  void loop();
  void post(uint32_t command);

  Stream& stream_;
  const int64_t spin_ns_;
  std::atomic<uint32_t> command_{kIdle};
  std::thread thread_;
};

}  // namespace npu::host
