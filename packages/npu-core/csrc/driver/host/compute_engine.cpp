#include "compute_engine.h"

#include <algorithm>

#include "clock.h"
#include "engine_thread.h"
#include "scheduler.h"
#include "stream.h"

namespace npu::host {
namespace {

// Tasks of one stream before the next stream of the same priority gets its turn.
constexpr unsigned kQuantum = 4;
// Turns after which streams without work are no longer polled while others keep the engine busy.
constexpr unsigned kRoundsBetweenDetach = 256;

}  // namespace

void ComputeEngine::start(int64_t spin_ns) {
  spin_ns_ = spin_ns;
  stop_ = false;
  inbox_.reset();
  thread_ = start_thread("npu-compute", ThreadRole{.is_engine = true}, [this] { loop(); });
}

void ComputeEngine::stop() {
  if (!thread_.joinable()) return;
  inbox_.request_stop();
  thread_.join();
}

void ComputeEngine::loop() {
  for (;;) {
    if (inbox_.attention()) accept_streams();
    size_t index;
    if (find_ready(&index)) {
      run(index);
      if (++rounds_ % kRoundsBetweenDetach == 0 && streams_.size() > 1) detach_idle();
      continue;
    }
    if (!stop_ && spin_until([this] { return inbox_.attention() || any_pending(); }, spin_ns_)) continue;
    detach_idle();
    if (!streams_.empty()) continue;
    if (stop_) return;
    inbox_.sleep();
  }
}

void ComputeEngine::accept_streams() {
  Stream* stream = inbox_.take(&stop_);
  while (stream != nullptr) {
    Stream* following = stream->next;
    stream->held = true;
    if (stream->listed) {
      stream->release();  // was passed away and came back before the list noticed: one entry, one reference
    } else {
      stream->listed = true;
      auto place = std::upper_bound(streams_.begin(), streams_.end(), stream,
                                    [](const Stream* a, const Stream* b) { return a->priority() < b->priority(); });
      streams_.insert(place, stream);
    }
    stream = following;
  }
}

bool ComputeEngine::any_pending() const {
  return std::any_of(streams_.begin(), streams_.end(), [](const Stream* stream) { return stream->pending(); });
}

// The next stream of the most urgent priority that has work, made ours.
bool ComputeEngine::find_ready(size_t* index) {
  size_t begin = 0;
  while (begin < streams_.size()) {
    size_t end = begin + 1;
    while (end < streams_.size() && streams_[end]->priority() == streams_[begin]->priority()) ++end;
    size_t first = cursor_ >= begin && cursor_ < end ? cursor_ : begin;
    bool removed = false;
    for (size_t step = 0; step < end - begin && !removed; ++step) {
      size_t i = first + step < end ? first + step : first + step - (end - begin);
      Stream& stream = *streams_[i];
      if (!stream.pending()) continue;
      if (stream.held || stream.claim()) {
        stream.held = true;
        *index = i;
        return true;
      }
      remove(i);  // somebody took it while it lingered
      removed = true;
    }
    if (!removed) begin = end;
  }
  return false;
}

void ComputeEngine::run(size_t index) {
  Stream& stream = *streams_[index];
  const bool alone = streams_.size() == 1;
  size_t more_urgent = 0;
  if (!alone) {
    // A task may take long.  Streams that we own without running them would be stuck meanwhile, even for a copy.
    for (Stream* other : streams_) {
      if (other != &stream && other->held && !other->pending() && other->linger()) other->held = false;
      if (other->priority() < stream.priority()) ++more_urgent;
    }
  }
  unsigned budget = kQuantum;
  Outcome outcome = stream.run(kForCompute, scratch_, [&] {
    if (inbox_.attention()) return true;
    if (alone) return false;
    if (budget-- == 0) return true;
    for (size_t i = 0; i < more_urgent; ++i) {
      if (streams_[i]->pending()) return true;
    }
    return false;
  });
  cursor_ = index + 1;
  if (outcome == Outcome::hand_over) {
    stream.held = false;
    hand_over(stream);
    remove(index);
  } else if (outcome == Outcome::parked) {
    remove(index);
  }
}

void ComputeEngine::remove(size_t index) {
  Stream* stream = streams_[index];
  stream->held = stream->listed = false;
  streams_.erase(streams_.begin() + static_cast<ptrdiff_t>(index));
  if (cursor_ > index) --cursor_;
  stream->release();
}

void ComputeEngine::detach_idle() {
  for (size_t i = streams_.size(); i-- > 0;) {
    if (!streams_[i]->pending() || !streams_[i]->held) {
      if (streams_[i]->detach(streams_[i]->held)) remove(i);
    }
  }
}

}  // namespace npu::host
