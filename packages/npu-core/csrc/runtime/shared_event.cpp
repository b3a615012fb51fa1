#include "shared_event.h"

#include <c10/util/Exception.h>

#include <cstdio>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "device.h"
#include "driver_loader.h"
#include "error.h"

namespace npu {

struct SharedEvent::Cell {
  std::atomic<std::uint64_t> serial;      // which event the cell is: a stale handle does not match
  std::atomic<std::uint32_t> references;  // 0: free.  Those of the dead stay, which costs the cell, nothing else
  std::atomic<std::uint32_t> changes;     // waiters sleep on it
  std::atomic<std::uint64_t> recorded;    // how often
  std::atomic<std::uint64_t> completed;   // the latest record that has happened
  std::atomic<std::uint64_t> recorder_start_time;
  std::atomic<std::int32_t> recorder;  // the process of the latest record

  ProcessIdentity recorded_by() const { return {recorder_start_time.load(), recorder.load(), 0}; }
};

struct SharedEvent::Handle {
  char magic[8];
  PageName page;
  std::uint64_t serial;
  std::uint32_t cell;
  std::int32_t physical_device;
};

namespace {

constexpr char kMagic[8] = {'n', 'p', 'u', 'e', 'v', 't', '0', '1'};

struct EventPages {
  std::mutex mutex;
  std::uint64_t next_serial = 1;
  std::vector<std::shared_ptr<SharedPage>> pages;
};

EventPages& event_pages() {
  static auto* all = new EventPages;
  return *all;
}

}  // namespace

SharedEvent::SharedEvent(std::shared_ptr<SharedPage> page, std::uint32_t index, std::uint64_t serial, int device)
    : page_(std::move(page)), index_(index), serial_(serial), device_(device) {}

SharedEvent::~SharedEvent() {
  if (!in_bad_fork()) cell().references.fetch_sub(1, std::memory_order_acq_rel);
}

SharedEvent::Cell& SharedEvent::cell() const { return page_->cell<Cell>(index_); }

std::unique_ptr<SharedEvent> SharedEvent::create(int device) {
  initialize();
  EventPages& all = event_pages();
  std::lock_guard lock(all.mutex);
  for (std::size_t number = 0;; ++number) {
    if (number == all.pages.size()) all.pages.push_back(SharedPage::create());
    for (std::uint32_t index = 0; index < SharedPage::kCells; ++index) {
      auto& cell = all.pages[number]->cell<Cell>(index);
      // Only this process makes events here, under the lock; peers count up from 1 or more.
      if (cell.references.load(std::memory_order_acquire) != 0) continue;
      cell.serial.store(all.next_serial, std::memory_order_relaxed);
      cell.recorded.store(0, std::memory_order_relaxed);
      cell.completed.store(0, std::memory_order_relaxed);
      cell.references.store(1, std::memory_order_release);
      return std::unique_ptr<SharedEvent>(new SharedEvent(all.pages[number], index, all.next_serial++, device));
    }
  }
}

std::string SharedEvent::handle() const {
  Handle handle{};
  std::memcpy(handle.magic, kMagic, sizeof(kMagic));
  handle.page = page_->name();
  handle.serial = serial_;
  handle.cell = index_;
  handle.physical_device = driver_device(device_);
  return std::string(reinterpret_cast<const char*>(&handle), sizeof(handle));
}

std::unique_ptr<SharedEvent> SharedEvent::open(std::string_view bytes) {
  Handle handle{};
  TORCH_CHECK(bytes.size() == sizeof(handle) && std::memcmp(bytes.data(), kMagic, sizeof(kMagic)) == 0, "npu: these ",
              bytes.size(), " bytes are no handle of Event.ipc_handle()",
              error_suffix(Submodule::PTA, ErrorCode::VALUE));
  std::memcpy(&handle, bytes.data(), sizeof(handle));
  initialize();
  int device = 0;
  while (device < device_count() && driver_device(device) != handle.physical_device) ++device;
  TORCH_CHECK(device < device_count(), "npu: an event of device ", handle.physical_device,
              " of this machine was received, but this process does not see that device",
              error_suffix(Submodule::PTA, ErrorCode::NOT_FOUND));
  std::shared_ptr<SharedPage> page;
  if (handle.page.owner == this_process()) {
    EventPages& all = event_pages();
    std::lock_guard lock(all.mutex);
    for (const auto& own : all.pages)
      if (own->name().fd == handle.page.fd) page = own;
  } else {
    page = SharedPage::open(handle.page, "an event");
  }
  bool found = page != nullptr;
  if (found) {
    auto& cell = page->cell<Cell>(handle.cell);
    std::uint32_t references = cell.references.load(std::memory_order_acquire);
    // A free cell stays free: its next event is not the one of the handle.
    while (references != 0 && !cell.references.compare_exchange_weak(references, references + 1)) {
    }
    found = references != 0;
    if (found && cell.serial.load(std::memory_order_acquire) != handle.serial) {
      cell.references.fetch_sub(1, std::memory_order_acq_rel);
      found = false;
    }
  }
  TORCH_CHECK(found, "npu: the event of this handle was destroyed by process ", handle.page.owner.pid,
              " before it was opened here; keep the event until the others have opened it",
              error_suffix(Submodule::PTA, ErrorCode::NOT_FOUND));
  return std::unique_ptr<SharedEvent>(new SharedEvent(std::move(page), handle.cell, handle.serial, device));
}

namespace {

struct Recorded {
  std::shared_ptr<SharedPage> page;
  std::uint32_t index;
  std::uint64_t number;
};

}  // namespace

void SharedEvent::record(Stream* stream) {
  const ProcessIdentity self = this_process();
  cell().recorder_start_time.store(self.start_time);
  cell().recorder.store(self.pid);
  const std::uint64_t number = cell().recorded.fetch_add(1) + 1;
  auto recorded = std::make_unique<Recorded>(Recorded{page_, index_, number});
  Recorded* payload = recorded.get();
  npu_task task{};
  task.name = "record a shared event";
  task.payload = &payload;
  task.payload_size = sizeof(payload);
  task.kind = NPU_TASK_COMPUTE;
  task.flags = NPU_TASK_ALWAYS;
  task.run = [](void* context, npu_error*) {
    const Recorded& done = **static_cast<Recorded**>(context);
    auto& cell = done.page->cell<Cell>(done.index);
    std::uint64_t seen = cell.completed.load();
    while (seen < done.number && !cell.completed.compare_exchange_weak(seen, done.number)) {
    }
    wake_shared(cell.changes);
    return NPU_OK;
  };
  task.destroy = [](void* context) { delete *static_cast<Recorded**>(context); };
  check(driver().stream_submit(stream->native, &task), "stream_submit");
  recorded.release();  // the task's from here on
}

bool SharedEvent::await(const SharedPage& page, std::uint32_t index, std::uint64_t target, std::int32_t* ended) {
  auto& cell = page.cell<Cell>(index);
  const auto done = [&] { return cell.completed.load(std::memory_order_acquire) >= target; };
  if (wait_shared(cell.changes, done, [&] { return cell.recorded_by(); })) return true;
  *ended = cell.recorded_by().pid;
  return false;
}

void SharedEvent::wait(Stream* stream) const {
  const std::uint64_t target = cell().recorded.load();
  if (cell().completed.load(std::memory_order_acquire) >= target) return;
  auto awaited = std::make_unique<Recorded>(Recorded{page_, index_, target});
  Recorded* payload = awaited.get();
  npu_task task{};
  task.name = "wait for a shared event";
  task.payload = &payload;
  task.payload_size = sizeof(payload);
  task.kind = NPU_TASK_BLOCKING;
  task.run = [](void* context, npu_error* error) {
    const Recorded& awaited = **static_cast<Recorded**>(context);
    std::int32_t ended = 0;
    if (await(*awaited.page, awaited.index, awaited.number, &ended)) return NPU_OK;
    std::snprintf(error->message, sizeof(error->message),
                  "process %d, which recorded the event, ended before the event happened", ended);
    return NPU_ERROR_TASK_FAILED;
  };
  task.destroy = [](void* context) { delete *static_cast<Recorded**>(context); };
  check(driver().stream_submit(stream->native, &task), "stream_submit");
  awaited.release();
}

bool SharedEvent::query() const {
  const std::uint64_t target = cell().recorded.load();
  return cell().completed.load(std::memory_order_acquire) >= target;
}

void SharedEvent::synchronize() const {
  std::int32_t ended = 0;
  TORCH_CHECK(await(*page_, index_, cell().recorded.load(), &ended), "npu: process ", ended,
              ", which recorded the event, ended before the event happened",
              error_suffix(Submodule::PTA, ErrorCode::UNAVAIL));
}

}  // namespace npu
