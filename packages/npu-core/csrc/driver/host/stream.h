// A stream: a queue of tasks and signals, and the rule that at most one thread executes it at a time.
//
// How ownership works.  A stream has no thread.  Whoever submits to a free stream becomes its owner, settles the
// signals at the front by itself and passes the stream on to the thread that may run the next task (scheduler.h).
// The owner runs tasks until
//   - the queue is empty: it frees the stream, or keeps it a while (the compute engine);
//   - the next task is for somebody else: it passes the stream on;
//   - an event that is not complete: it parks the stream on the event's marker, and whoever completes the marker
//     becomes the owner.
// `owner_` changes only under the producers' lock.  A producer therefore knows, while it holds that lock, whether
// somebody will look at the task it has just queued, and the consumer's hot loop needs no lock at all.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "blocking_thread.h"
#include "completion.h"
#include "device.h"
#include "event.h"
#include "failure.h"
#include "npu/driver.h"
#include "spin_lock.h"
#include "task_ring.h"

namespace npu::host {

constexpr uint32_t accepts(SlotKind kind) { return 1u << kind; }
// What each kind of owner executes.
constexpr uint32_t kSignals = accepts(kRecordSlot) | accepts(kWaitSlot);
constexpr uint32_t kForCompute = kSignals | accepts(kComputeSlot) | accepts(kLightSlot);
constexpr uint32_t kForCopy = kSignals | accepts(kCopySlot) | accepts(kLightSlot);
constexpr uint32_t kForBlocking = kForCopy | accepts(kBlockingSlot);

enum class Outcome {
  drained,    // nothing left; the caller still owns the stream
  yielded,    // `interrupted` said so; the caller still owns the stream
  hand_over,  // the next task is not the caller's to run; the caller still owns the stream
  parked,     // an event's marker owns the stream now
};

class Stream {
 public:
  Stream(Device& device, int32_t priority, int64_t spin_ns);
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // The handle holds one reference, and so does everything that may touch the stream after its last task is done.
  void retain() { references_.fetch_add(1, std::memory_order_relaxed); }
  void release() {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  Device& device() const { return device_; }
  uint64_t id() const { return id_; }
  int32_t priority() const { return priority_; }

  // ---- any thread ----
  npu_status submit(const npu_task& task, SlotKind kind);
  npu_status check_open(const char* call) const;  // STOPPED with a text once closed or stopped
  npu_status check_not_closed(const char* call) const;
  bool idle() const { return completion_.value() >= tail_.load(std::memory_order_acquire); }
  uint64_t ticket() const { return tail_.load(std::memory_order_acquire); }
  npu_status synchronize(uint64_t ticket, int64_t deadline_ns);
  npu_status take_error(npu_error* error);
  bool pending() const { return tail_.load(std::memory_order_acquire) != completion_.value_for_owner(); }

  // Drops what is queued and refuses further tasks with `reason` until resume.
  void stop(const char* reason);
  void resume();

  // Refuses further tasks; then waits for those queued.
  void close();
  void drain();
  // After drain: ends the stream's own thread; then gives back the ring (no owner may be left).
  void end_thread();
  void free_ring();

  // ---- the owner ----
  // Executes slots while `accepted` allows it and `interrupted()` does not stop it.  `scratch` is the owner's.
  template <typename Interrupted>
  Outcome run(uint32_t accepted, npu_error& scratch, Interrupted&& interrupted);
  SlotKind next_kind() const { return static_cast<SlotKind>(ring_[completion_.value_for_owner()].kind); }
  // Gives an empty stream up.  False when it is not empty: the caller still owns it.
  bool set_free();
  // The stream's own thread, started on first use; throws std::system_error.
  BlockingThread& own_thread();
  // No thread could be started: the compute engine takes every task, runs copies and fails blocking ones.
  void strand(const char* reason);

  // ---- the compute engine: it keeps empty streams for a while and polls them ----
  // Lets others take the stream for a task the engine does not run.  False when the stream is not empty.
  bool linger();
  bool claim();            // takes a lingering stream back; false when somebody else did
  bool detach(bool held);  // frees it if it is still the engine's; false when there is work on it

  Stream* next = nullptr;  // link of the one list the stream is in: an inbox, or the parked streams of a marker
  bool listed = false;     // compute engine only: in its list
  bool held = false;       // compute engine only: owned by it, not lingering

 private:
  enum class Owner : uint8_t { nobody, lingering, somebody };
  ~Stream() = default;

  void execute(Slot& slot, npu_error& scratch);
  npu_status run_guarded(Slot& slot, void* payload, npu_error& scratch);
  npu_status wait_for_space(uint64_t tail);
  void keep_error(npu_status status, const char* op, const char* message);
  void keep_failure(std::shared_ptr<Failure> failure);  // error_mutex_ is held
  // The error nobody has taken yet, also from another stream; error_mutex_ is held.
  Failure* unread_failure() const;
  bool dropping();
  // Signals, by the owner.
  void reach(Marker* marker);
  bool pass(Marker* marker);  // false: parked

  // Producers.
  enum class State : uint8_t { open, stopped, closed };
  alignas(64) SpinLock lock_;
  std::atomic<State> state_{State::open};
  Owner owner_ = Owner::nobody;
  uint64_t known_head_ = 0;
  TaskRing ring_;
  alignas(64) std::atomic<uint64_t> tail_{0};

  // The owner; read by anybody.
  Completion completion_;
  alignas(64) std::atomic<bool> poisoned_{false};
  uint32_t also_accepted_ = 0;
  Device& device_;
  const int32_t priority_;
  const int64_t spin_ns_;
  const uint64_t id_;

  std::atomic<uint32_t> references_{1};
  mutable std::mutex error_mutex_;
  std::shared_ptr<Failure> failure_;
  SpinLock park_lock_;
  Marker* parked_on_ = nullptr;  // while the owner parks the stream or it is parked; guarded by park_lock_
  std::unique_ptr<BlockingThread> own_thread_;
};

inline Marker* marker_of(Slot& slot) {
  Marker* marker;
  memcpy(&marker, slot.bytes, sizeof(marker));
  return marker;
}

template <typename Interrupted>
Outcome Stream::run(uint32_t accepted, npu_error& scratch, Interrupted&& interrupted) {
  accepted |= also_accepted_;
  uint64_t head = completion_.value_for_owner();
  uint64_t tail = tail_.load(std::memory_order_acquire);
  for (;; completion_.publish(++head)) {
    if (head == tail) {
      tail = tail_.load(std::memory_order_acquire);
      if (head == tail) return Outcome::drained;
    }
    Slot& slot = ring_[head];
    __builtin_prefetch(&ring_[head + 4]);  // slots are a page fraction apart: the hardware does not guess them
    if ((accepted >> slot.kind & 1) == 0) return Outcome::hand_over;
    if (is_signal(slot.kind)) {
      Marker* marker = marker_of(slot);
      if (slot.kind == kRecordSlot) {
        reach(marker);
      } else if (!pass(marker)) {
        return Outcome::parked;
      }
      marker->release();
    } else {
      if (interrupted()) return Outcome::yielded;
      execute(slot, scratch);
    }
  }
}

}  // namespace npu::host
