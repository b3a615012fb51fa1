#include "copy_engine.h"

#include "clock.h"
#include "engine_thread.h"
#include "scheduler.h"
#include "stream.h"

namespace npu::host {

void CopyEngine::configure(int device, int64_t spin_ns) {
  device_ = device;
  spin_ns_ = spin_ns;
  inbox_.reset();
}

void CopyEngine::serve(Stream& stream) {
  {
    std::lock_guard lock(start_mutex_);
    if (!thread_.joinable()) {
      thread_ = start_thread("npu-copy-" + std::to_string(device_), ThreadRole{.is_engine = true}, [this] { loop(); });
    }
  }
  inbox_.put(stream);
}

void CopyEngine::stop() {
  std::lock_guard lock(start_mutex_);
  if (!thread_.joinable()) return;
  inbox_.request_stop();
  thread_.join();
  thread_ = std::thread();
}

void CopyEngine::loop() {
  npu_error scratch{};
  Stream* first = nullptr;  // streams to serve, in order
  Stream** last = &first;
  bool stop = false;
  for (;;) {
    if (inbox_.attention()) {
      *last = inbox_.take(&stop);
      while (*last != nullptr) last = &(*last)->next;
    }
    if (first == nullptr) {
      if (stop) return;
      if (!spin_until([&] { return inbox_.attention(); }, spin_ns_)) inbox_.sleep();
      continue;
    }
    Stream& stream = *first;
    first = stream.next;
    if (first == nullptr) last = &first;

    unsigned ran = 0;
    Outcome outcome =
        stream.run(kForCopy, scratch, [&] { return ran++ > 0 && (first != nullptr || inbox_.attention()); });
    if (outcome == Outcome::yielded || (outcome == Outcome::drained && !stream.set_free())) {
      stream.next = nullptr;
      *last = &stream;
      last = &stream.next;
      continue;
    }
    if (outcome == Outcome::hand_over) hand_over(stream);
    stream.release();
  }
}

}  // namespace npu::host
