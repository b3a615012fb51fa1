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

npu_status Stream::check_open(const char* call) const {
  if (!closed_.load(std::memory_order_relaxed)) [[likely]]
    return NPU_OK;
  return fail(NPU_ERROR_STOPPED, "%s: the stream was destroyed, or the driver was shut down since it was created",
              call);
}

npu_status Stream::submit(const npu_task& task, SlotKind kind) {
  bool dispatch_here = false;
  {
    std::unique_lock lock(lock_);
    uint64_t tail;
    for (;;) {
      if (closed_.load(std::memory_order_relaxed)) [[unlikely]]
        return check_open("stream_submit");
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

npu_status Stream::synchronize(int64_t deadline_ns) {
  uint64_t target = tail_.load(std::memory_order_acquire);
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
  if (error_.status == NPU_OK) return NPU_OK;  // another thread took it meanwhile
  return fail(NPU_ERROR_TASK_FAILED, "task \"%s\" failed: %s", error_.op, error_.message);
}

npu_status Stream::take_error(npu_error* error) {
  std::lock_guard lock(error_mutex_);
  if (error_.status == NPU_OK) {
    error->status = NPU_OK;
    error->reserved = 0;
    error->op[0] = error->message[0] = '\0';
    return NPU_OK;
  }
  *error = error_;
  error_.status = NPU_OK;
  poisoned_.store(false, std::memory_order_release);
  return fail(static_cast<npu_status>(error->status), "task \"%s\" failed: %s", error->op, error->message);
}

void Stream::keep_error(npu_status status, const char* op, const char* message) {
  std::lock_guard lock(error_mutex_);
  if (error_.status != NPU_OK) return;  // the first failure is the cause, later ones its consequences
  error_.status = status;
  copy_text(error_.op, sizeof(error_.op), op != nullptr ? op : "");
  if (*message == '\0') {
    snprintf(error_.message, sizeof(error_.message), "the task failed with status %d and no message", status);
  } else {
    copy_text(error_.message, sizeof(error_.message), message);
  }
  poisoned_.store(true, std::memory_order_release);
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
  if (!poisoned_.load(std::memory_order_relaxed) || (slot.flags & NPU_TASK_ALWAYS) != 0) [[likely]] {
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
  closed_.store(true, std::memory_order_relaxed);
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
