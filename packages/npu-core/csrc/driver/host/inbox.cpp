#include "inbox.h"

#include <utility>

#include "stream.h"

namespace npu::host {

void Inbox::put(Stream& stream) {
  stream.retain();
  stream.next = nullptr;
  std::unique_lock lock(mutex_);
  *last_ = &stream;
  last_ = &stream.next;
  ring(std::move(lock));
}

void Inbox::request_stop() {
  std::unique_lock lock(mutex_);
  stop_ = true;
  ring(std::move(lock));
}

void Inbox::reset() {
  std::lock_guard lock(mutex_);
  stop_ = false;
  attention_.store(false, std::memory_order_relaxed);
}

// Wakes only an engine that sleeps, and only once per sleep: a wake-up costs more than hundreds of tasks.
void Inbox::ring(std::unique_lock<std::mutex> lock) {
  attention_.store(true, std::memory_order_relaxed);
  bool wake = std::exchange(sleeping_, false);
  if (wake) bell_.fetch_add(1, std::memory_order_relaxed);
  lock.unlock();
  if (wake) futex_wake_one(bell_);
}

Stream* Inbox::take(bool* stop) {
  std::lock_guard lock(mutex_);
  attention_.store(false, std::memory_order_relaxed);
  *stop = stop_;
  last_ = &first_;
  return std::exchange(first_, nullptr);
}

void Inbox::sleep() {
  uint32_t bell;
  {
    std::lock_guard lock(mutex_);
    if (attention()) return;
    sleeping_ = true;
    bell = bell_.load(std::memory_order_relaxed);
  }
  while (bell_.load(std::memory_order_relaxed) == bell) futex_wait(bell_, bell);
}

}  // namespace npu::host
