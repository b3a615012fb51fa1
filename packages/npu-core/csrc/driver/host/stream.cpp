#include "stream.h"

#include <exception>
#include <new>

#include "clock.h"
#include "engine_thread.h"
#include "error.h"
#include "scheduler.h"

namespace npu::host {
namespace {

std::atomic<uint64_t> next_stream_id{1};

}  // namespace

Stream::Stream(Device& device, int32_t priority, int64_t spin_ns)
    : device_(device),
      priority_(priority),
      spin_ns_(spin_ns),
      id_(next_stream_id.fetch_add(1, std::memory_order_relaxed)) {}

npu_status Stream::check_not_closed(const char* call) const {
  if (state_.load(std::memory_order_relaxed) != State::closed) [[likely]]
    return NPU_OK;
  return fail(NPU_ERROR_STOPPED, "%s: the stream was destroyed, or the driver was shut down since it was created",
              call);
}

npu_status Stream::check_open(const char* call) const {
  if (state_.load(std::memory_order_relaxed) == State::open) [[likely]]
    return NPU_OK;
  npu_status status = check_not_closed(call);
  if (status != NPU_OK) return status;
  std::lock_guard lock(error_mutex_);
  return failure_ == nullptr ? NPU_OK : fail(NPU_ERROR_STOPPED, "%s", failure_->error.message);  // NULL: resumed now
}

npu_status Stream::submit(const npu_task& task, SlotKind kind) {
  bool dispatch_here = false;
  {
    std::unique_lock lock(lock_);
    uint64_t tail;
    for (;;) {
      if (state_.load(std::memory_order_relaxed) != State::open) [[unlikely]] {
        npu_status status = check_open("stream_submit");
        if (status != NPU_OK) return status;
      }
      tail = tail_.load(std::memory_order_relaxed);
      if (tail - known_head_ < TaskRing::kSlots) [[likely]]
        break;
      known_head_ = completion_.value();
      if (tail - known_head_ < TaskRing::kSlots) break;
      lock.unlock();
      npu_status status = wait_for_space(tail);
      if (status != NPU_OK) return status;
      lock.lock();
    }
    if (!ring_.mapped() && !ring_.map()) [[unlikely]]
      return fail_errno("stream_submit: cannot map the queue");

    Slot& slot = ring_[tail];
    slot.run = task.run;
    slot.destroy = task.destroy;
    slot.name = task.name;
    slot.payload_size = task.payload_size;
    slot.kind = kind;
    slot.flags = task.flags;
    try {
      slot.store_payload(task.payload);
    } catch (const std::bad_alloc&) {
      return fail(NPU_ERROR_OUT_OF_MEMORY, "stream_submit: no host memory for a payload of %u bytes",
                  task.payload_size);
    }
    tail_.store(tail + 1, std::memory_order_release);
    __builtin_prefetch(&ring_[tail + 1], 1);

    if (owner_ == Owner::nobody) {
      dispatch_here = true;
    } else if (owner_ == Owner::lingering && (kForCompute & ~kSignals & accepts(kind)) == 0) {
      // The engine only polls the stream and may be busy with another one.  Unless older tasks wait for the engine,
      // it is not needed for this one.
      dispatch_here = completion_.value() == tail;
    }
    if (dispatch_here) owner_ = Owner::somebody;
  }
  if (dispatch_here) dispatch(*this);
  return NPU_OK;
}

npu_status Stream::wait_for_space(uint64_t tail) {
  const ThreadRole& role = thread_role();
  if (role.is_engine || role.stream == this) {
    return fail(
        NPU_ERROR_INVALID_ARGUMENT,
        "stream_submit: the queue is full (%llu tasks) and a task that this queue may be waiting for cannot wait "
        "for it; submit from the host or from a BLOCKING task of another stream",
        static_cast<unsigned long long>(TaskRing::kSlots));
  }
  // A quarter of the ring at once, so that a producer that is faster than the engine sleeps rarely.
  completion_.wait(tail - TaskRing::kSlots + TaskRing::kSlots / 4, kForever, spin_ns_);
  return NPU_OK;
}

npu_status Stream::synchronize(uint64_t target, int64_t deadline_ns) {
  if (completion_.value() < target) {
    const ThreadRole& role = thread_role();
    if (role.is_engine || role.stream == this) {
      return fail(NPU_ERROR_INVALID_ARGUMENT, "stream_synchronize: called from a task that the stream may wait for");
    }
    if (!completion_.wait(target, deadline_ns, spin_ns_)) {
      return fail(NPU_ERROR_TIMEOUT, "stream_synchronize: timed out with %llu of the stream's tasks unfinished",
                  static_cast<unsigned long long>(target - completion_.value()));
    }
  }
  if (!poisoned_.load(std::memory_order_acquire)) [[likely]]
    return NPU_OK;
  std::lock_guard lock(error_mutex_);
  const Failure* failure = unread_failure();
  if (failure == nullptr) return NPU_OK;  // another thread took it meanwhile
  const npu_error& error = failure->error;
  if (state_.load(std::memory_order_relaxed) == State::stopped) return fail(NPU_ERROR_STOPPED, "%s", error.message);
  return fail(NPU_ERROR_TASK_FAILED, "task \"%s\" failed: %s", error.op, error.message);
}

npu_status Stream::take_error(npu_error* error) {
  std::lock_guard lock(error_mutex_);
  Failure* failure = unread_failure();
  if (failure == nullptr) {
    error->status = NPU_OK;
    error->reserved = 0;
    error->op[0] = error->message[0] = '\0';
    return NPU_OK;
  }
  *error = failure->error;
  if (state_.load(std::memory_order_relaxed) != State::stopped) {
    for (Failure* known = failure; known != nullptr; known = known->cause.get()) {
      known->taken.store(true, std::memory_order_release);
    }
    failure_.reset();
    poisoned_.store(false, std::memory_order_release);
  }
  return fail(static_cast<npu_status>(error->status), "task \"%s\" failed: %s", error->op, error->message);
}

Failure* Stream::unread_failure() const {
  return failure_ != nullptr && !failure_->taken.load(std::memory_order_acquire) ? failure_.get() : nullptr;
}

void Stream::keep_failure(std::shared_ptr<Failure> failure) {
  failure_ = std::move(failure);
  poisoned_.store(true, std::memory_order_release);
}

void Stream::keep_error(npu_status status, const char* op, const char* message) {
  std::lock_guard lock(error_mutex_);
  if (unread_failure() != nullptr) return;  // the first failure is the cause, later ones its consequences
  auto failure = std::make_shared<Failure>();
  npu_error& error = failure->error;
  error.status = status;
  copy_text(error.op, sizeof(error.op), op != nullptr ? op : "");
  if (*message == '\0') {
    snprintf(error.message, sizeof(error.message), "the task failed with status %d and no message", status);
  } else {
    copy_text(error.message, sizeof(error.message), message);
  }
  keep_failure(std::move(failure));
}

// Whether tasks are to be dropped.  An error that was taken from a stream further on ends here.
bool Stream::dropping() {
  if (!poisoned_.load(std::memory_order_relaxed)) [[likely]]
    return false;
  std::lock_guard lock(error_mutex_);
  if (unread_failure() != nullptr) return true;
  failure_.reset();
  poisoned_.store(false, std::memory_order_release);
  return false;
}

void Stream::reach(Marker* marker) {
  if (poisoned_.load(std::memory_order_relaxed)) [[unlikely]] {
    std::lock_guard lock(error_mutex_);
    if (unread_failure() != nullptr) marker->set_failure(failure_);
  }
  complete_marker(marker);
}

bool Stream::pass(Marker* marker) {
  {
    std::lock_guard lock(park_lock_);
    parked_on_ = nullptr;
    if (!marker->done()) {
      if (state_.load(std::memory_order_relaxed) == State::stopped) return true;
      parked_on_ = marker;
      if (marker->park(this)) return false;  // from here on the stream may be somebody else's
      parked_on_ = nullptr;
    }
  }
  // What follows would work on what the other stream never wrote.
  const std::shared_ptr<Failure>& cause = marker->failure();
  if (cause != nullptr) [[unlikely]] {
    std::lock_guard lock(error_mutex_);
    if (unread_failure() == nullptr) {
      auto failure = std::make_shared<Failure>();
      failure->error = cause->error;
      if (cause->error.status != NPU_ERROR_STOPPED) failure->cause = cause;  // only resume ends that one
      keep_failure(std::move(failure));
    }
  }
  return true;
}

void Stream::stop(const char* reason) {
  auto failure = std::make_shared<Failure>();
  failure->error.status = NPU_ERROR_STOPPED;
  copy_text(failure->error.message, sizeof(failure->error.message), reason);
  Marker* marker;
  {
    std::lock_guard lock(lock_);
    std::lock_guard error_lock(error_mutex_);
    std::lock_guard park_lock(park_lock_);
    if (state_.load(std::memory_order_relaxed) != State::open) return;
    keep_failure(std::move(failure));
    state_.store(State::stopped, std::memory_order_relaxed);
    marker = parked_on_;
    if (marker != nullptr) marker->retain();
  }
  if (marker == nullptr) return;
  if (marker->unpark(this)) dispatch(*this);
  marker->release();
}

void Stream::resume() {
  if (state_.load(std::memory_order_relaxed) == State::stopped) drain();
  std::lock_guard lock(lock_);
  if (state_.load(std::memory_order_relaxed) == State::closed) return;
  std::lock_guard error_lock(error_mutex_);
  if (failure_ != nullptr) failure_->taken.store(true, std::memory_order_release);  // its events stop spreading it
  failure_.reset();
  poisoned_.store(false, std::memory_order_release);
  state_.store(State::open, std::memory_order_relaxed);
}

npu_status Stream::run_guarded(Slot& slot, void* payload, npu_error& scratch) {
  if (device_.faults.active()) [[unlikely]] {
    npu_status status = device_.faults.strike_task(slot.name);
    if (status != NPU_OK) {
      copy_text(scratch.message, sizeof(scratch.message), "injected fault (inject_fault)");
      return status;
    }
  }
  if (slot.kind == kBlockingSlot && also_accepted_ != 0) [[unlikely]] {
    copy_text(scratch.message, sizeof(scratch.message), "no thread could be started for the stream's blocking tasks");
    return NPU_ERROR_SYSTEM;
  }
  return slot.run(payload, &scratch);
}

void Stream::execute(Slot& slot, npu_error& scratch) {
  void* payload = slot.payload();
  // `run` and `destroy` must not throw; an exception that does come must not end the engine.
  if (!dropping() || (slot.flags & NPU_TASK_ALWAYS) != 0) [[likely]] {
    npu_status status;
    scratch.message[0] = '\0';
    try {
      status = run_guarded(slot, payload, scratch);
    } catch (const std::exception& exception) {
      status = NPU_ERROR_TASK_FAILED;
      copy_text(scratch.message, sizeof(scratch.message), exception.what());
    } catch (...) {
      status = NPU_ERROR_TASK_FAILED;
      copy_text(scratch.message, sizeof(scratch.message), "the task threw something that is no std::exception");
    }
    if (status != NPU_OK) [[unlikely]]
      keep_error(status, slot.name, scratch.message);
  }
  if (slot.destroy != nullptr) {
    try {
      slot.destroy(payload);
    } catch (...) {
      keep_error(NPU_ERROR_TASK_FAILED, slot.name, "the task's destroy function threw an exception");
    }
  }
  slot.release_payload();
}

void Stream::close() {
  std::lock_guard lock(lock_);
  state_.store(State::closed, std::memory_order_relaxed);
}

void Stream::drain() { completion_.wait(tail_.load(std::memory_order_acquire), kForever, spin_ns_); }

void Stream::end_thread() { own_thread_.reset(); }

void Stream::free_ring() {
  std::lock_guard lock(lock_);
  ring_.reset();
}

BlockingThread& Stream::own_thread() {
  if (own_thread_ == nullptr) own_thread_ = std::make_unique<BlockingThread>(*this, spin_ns_);
  return *own_thread_;
}

void Stream::strand(const char* reason) {
  also_accepted_ = kForBlocking;
  keep_error(NPU_ERROR_SYSTEM, "", reason);
}

bool Stream::set_free() {
  std::lock_guard lock(lock_);
  if (pending()) return false;
  owner_ = Owner::nobody;
  return true;
}

bool Stream::linger() {
  std::lock_guard lock(lock_);
  if (pending()) return false;
  owner_ = Owner::lingering;
  return true;
}

bool Stream::claim() {
  std::lock_guard lock(lock_);
  if (owner_ != Owner::lingering) return false;
  owner_ = Owner::somebody;
  return true;
}

bool Stream::detach(bool held) {
  std::lock_guard lock(lock_);
  if (!held && owner_ != Owner::lingering) return true;
  if (pending()) return false;
  owner_ = Owner::nobody;
  return true;
}

}  // namespace npu::host
