// The queue of a stream: a ring of fixed slots that hold a task and its payload.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

#include "npu/driver.h"

namespace npu::host {

// What a slot asks of the thread that owns the stream.  The first three are npu_task_kind.
enum SlotKind : uint16_t {
  kComputeSlot = NPU_TASK_COMPUTE,
  kCopySlot = NPU_TASK_COPY,
  kBlockingSlot = NPU_TASK_BLOCKING,
  kLightSlot,   // a small copy: any engine runs it on its way, a hop would cost more
  kRecordSlot,  // a signal: completes the event marker in the payload
  kWaitSlot,    // a signal: parks the stream until the marker in the payload is complete
};

constexpr bool is_signal(uint16_t kind) { return kind >= kRecordSlot; }

struct alignas(512) Slot {
  static constexpr size_t kInlineBytes = 480;

  npu_task_fn run;
  void (*destroy)(void* payload);
  const char* name;
  uint32_t payload_size;
  uint16_t kind;  // SlotKind
  uint16_t flags;
  alignas(32) unsigned char bytes[kInlineBytes];  // the payload, or a pointer to it when it is larger

  void store_payload(const void* payload) {
    if (payload_size <= kInlineBytes) [[likely]] {
      if (payload_size != 0) memcpy(bytes, payload, payload_size);
    } else {
      void* copy = ::operator new(payload_size, std::align_val_t{64});
      memcpy(copy, payload, payload_size);
      memcpy(bytes, &copy, sizeof(copy));
    }
  }

  void* payload() {
    if (payload_size <= kInlineBytes) [[likely]]
      return bytes;
    void* copy;
    memcpy(&copy, bytes, sizeof(copy));
    return copy;
  }

  void release_payload() {
    if (payload_size > kInlineBytes) [[unlikely]]
      ::operator delete(payload(), std::align_val_t{64});
  }
};
static_assert(sizeof(Slot) == 512);

// Memory of the ring.  Mapped at the first submit and touched slot by slot, so that a stream that is created and
// never used costs nothing.
class TaskRing {
 public:
  static constexpr uint64_t kSlots = 1024;

  TaskRing() = default;
  TaskRing(const TaskRing&) = delete;
  TaskRing& operator=(const TaskRing&) = delete;
  ~TaskRing() { reset(); }

  bool mapped() const { return slots_ != nullptr; }
  bool map() {
    void* memory = mmap(nullptr, kSlots * sizeof(Slot), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return false;
    slots_ = static_cast<Slot*>(memory);
    return true;
  }
  void reset() {
    if (slots_ != nullptr) munmap(slots_, kSlots * sizeof(Slot));
    slots_ = nullptr;
  }

  Slot& operator[](uint64_t sequence) const { return slots_[sequence & (kSlots - 1)]; }

 private:
  Slot* slots_ = nullptr;
};

}  // namespace npu::host
