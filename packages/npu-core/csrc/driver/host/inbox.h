// Streams that wait for an engine, and the engine's sleep while there are none.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#include "futex.h"

namespace npu::host {

class Stream;

class Inbox {
 public:
  // Passes the ownership of `stream`, and a reference, to the engine.
  void put(Stream& stream);
  void request_stop();
  void reset();  // before a new start

  // True when there is something to take or a stop was requested.  Cheap: polled per task.
  bool attention() const { return attention_.load(std::memory_order_relaxed); }
  // All waiting streams in order, linked by Stream::next; clears attention.
  Stream* take(bool* stop);
  // Sleeps until attention().
  void sleep();

 private:
  void ring(std::unique_lock<std::mutex> lock);

  std::mutex mutex_;
  Stream* first_ = nullptr;
  Stream** last_ = &first_;
  bool stop_ = false;
  bool sleeping_ = false;
  std::atomic<uint32_t> bell_{0};
  alignas(64) std::atomic<bool> attention_{false};
};

}  // namespace npu::host
