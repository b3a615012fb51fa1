#include "blocking_thread.h"

#include "clock.h"
#include "engine_thread.h"
#include "scheduler.h"
#include "stream.h"

namespace npu::host {

BlockingThread::BlockingThread(Stream& stream, int64_t spin_ns) : stream_(stream), spin_ns_(spin_ns) {
  thread_ = start_thread("npu-blocking", ThreadRole{.stream = &stream}, [this] { loop(); });
}

BlockingThread::~BlockingThread() {
  post(kStop);
  thread_.join();
}

void BlockingThread::serve() { post(kServe); }

void BlockingThread::post(uint32_t command) {
  if (command_.exchange(command, std::memory_order_acq_rel) == kAsleep) futex_wake_one(command_);
}

void BlockingThread::loop() {
  npu_error scratch{};
  for (;;) {
    auto posted = [this] { return command_.load(std::memory_order_acquire) >= kServe; };
    if (!spin_until(posted, spin_ns_)) {
      uint32_t idle = kIdle;
      command_.compare_exchange_strong(idle, kAsleep, std::memory_order_acq_rel);
      while (!posted()) futex_wait(command_, kAsleep);
    }
    uint32_t command = kServe;
    if (!command_.compare_exchange_strong(command, kIdle, std::memory_order_acq_rel)) return;  // kStop

    Outcome outcome;
    do {
      outcome = stream_.run(kForBlocking, scratch, [] { return false; });
    } while (outcome == Outcome::drained && !stream_.set_free());
    if (outcome == Outcome::hand_over) hand_over(stream_);
  }
}

}  // namespace npu::host
