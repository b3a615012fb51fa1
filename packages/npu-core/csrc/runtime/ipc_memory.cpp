#include "ipc_memory.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <compare>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "allocator_config.h"
#include "caching_allocator.h"
#include "device.h"
#include "driver_loader.h"
#include "error.h"
#include "shared_page.h"
#include "stream_table.h"
#include "transfer_cell.h"

namespace npu {
namespace {

constexpr char kMagic[8] = {'n', 'p', 'u', 't', 'e', 'n', '0', '1'};
constexpr std::size_t kWeakLimit = 256;

// What a message holds.
struct Message {
  char magic[8];
  npu_memory_handle memory;
  PageName page;
  ProcessIdentity sender;  // not the page's owner when the block is sent on
  std::uint64_t block;
  std::uint64_t bytes;
  std::uint32_t cell;
  std::uint32_t use;
  std::int32_t physical_device;
  std::int32_t reserved;
};

// Cell 0 of every page.  The sweep of the owner could otherwise pass a free cell before, and the cell of a process
// that sends the block on after, that process has moved from the latter to the former.
struct PageHead {
  std::atomic<std::uint64_t> sent_on;
};

using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;

// Memory of this process that others have been sent.  The storage owns it together with the table of sent blocks.
struct SentBlock {
  c10::DataPtr memory;
  std::uint64_t id = 0;
  npu_memory_handle handle{};
};
using SentContext = std::shared_ptr<SentBlock>;

// Memory of another process in use here.
struct ReceivedBlock {
  Message message;
  std::shared_ptr<SharedPage> page;
  void* address;
  int device;
  Stream* stream;  // the one that waits for the sender

  TransferCell& cell() const { return page->cell<TransferCell>(message.cell); }
};

struct BlockKey {
  std::int32_t pid;
  std::uint64_t start_time;
  std::uint64_t block;
  std::uint64_t bytes;
  auto operator<=>(const BlockKey&) const = default;
};

struct Tables {
  std::mutex mutex;
  std::uint64_t next_id = 1;
  std::vector<std::shared_ptr<SharedPage>> pages;  // of this process
  std::unordered_map<std::uint64_t, SentContext> sent;
  std::size_t sent_since_collection = 0;
  std::unordered_map<std::uint64_t, WeakStorage> sent_storages;
  std::map<BlockKey, WeakStorage> received;
};

Tables& tables() {
  static auto* all = new Tables;  // outlives static destructors, which may free tensors
  return *all;
}

c10::Device torch_device(int device) { return {c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device)}; }

// ---- work that is to be done when streams have come to where they are now ----------------------------------------

struct Countdown {
  std::atomic<std::size_t> left;
  void* context;
  void (*action)(void*);

  void step() {
    if (left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    action(context);
    delete this;
  }
};

// Steps that found a queue full on a thread of the driver, which must not wait for room.
struct Postponed {
  std::mutex mutex;
  std::vector<std::pair<Countdown*, Stream*>> steps;
};

Postponed& postponed() {
  static auto* all = new Postponed;
  return *all;
}

void queue_step(Countdown* countdown, Stream* stream) {
  npu_task task{};
  task.name = "ipc";
  task.payload = &countdown;
  task.payload_size = sizeof(countdown);
  task.kind = NPU_TASK_COMPUTE;
  task.flags = NPU_TASK_ALWAYS;
  task.run = [](void* payload, npu_error*) {
    (*static_cast<Countdown**>(payload))->step();
    return NPU_OK;
  };
  const npu_status status = driver().stream_submit(stream->native, &task);
  if (status == NPU_OK) return;
  if (status == NPU_ERROR_STOPPED) {
    countdown->step();  // nothing is left to run there
    return;
  }
  std::lock_guard lock(postponed().mutex);
  postponed().steps.emplace_back(countdown, stream);
}

void resume_postponed() {
  std::vector<std::pair<Countdown*, Stream*>> steps;
  {
    std::lock_guard lock(postponed().mutex);
    steps.swap(postponed().steps);
  }
  for (const auto& [countdown, stream] : steps) queue_step(countdown, stream);
}

// Calls `action(context)` once, as soon as everything queued on `streams` has run; at once when they are idle.  It
// runs on a thread of the driver, also when tasks before it have failed.  To call without locks.
void after_streams(const std::vector<Stream*>& streams, void* context, void (*action)(void*)) {
  std::vector<Stream*> busy;
  for (Stream* stream : streams)
    if (driver().stream_query(stream->native) == NPU_ERROR_NOT_READY) busy.push_back(stream);
  if (busy.empty()) {
    action(context);
    return;
  }
  auto* countdown = new Countdown{busy.size(), context, action};
  for (Stream* stream : busy) queue_step(countdown, stream);
}

// ---- the sender's side ---------------------------------------------------------------------------------------------

void forget_unless_referenced(std::uint64_t id) noexcept;

void release_sent(void* context) noexcept {
  const std::unique_ptr<SentContext> block(static_cast<SentContext*>(context));
  if (!in_bad_fork()) forget_unless_referenced((*block)->id);
}

bool is_sent(const c10::DataPtr& memory) { return memory.get_deleter() == &release_sent; }

void release_received(void* context) noexcept;

bool is_received(const c10::DataPtr& memory) { return memory.get_deleter() == &release_received; }

npu_memory_handle handle_of(const c10::Storage& storage) {
  npu_memory_handle handle{};
  check(driver().memory_export(storage.data(), storage.nbytes(), &handle), "memory_export");
  return handle;
}

// The entry of the storage's memory in the table, made with its first export.  Needs the lock.
SentContext sent_block_of(Tables& all, const c10::Storage& storage) {
  c10::StorageImpl* impl = storage.unsafeGetStorageImpl();
  if (is_sent(impl->data_ptr())) return *static_cast<SentContext*>(impl->data_ptr().get_context());
  void* const address = impl->mutable_data();  // first: it may move the data
  auto block = std::make_shared<SentBlock>();
  block->handle = handle_of(storage);
  block->id = all.next_id++;
  auto context = std::make_unique<SentContext>(block);
  block->memory = impl->set_data_ptr(c10::DataPtr(address, context.release(), &release_sent, impl->device()));
  return block;
}

// A cell of this process for the block.  Needs the lock.
TransferCell& claim_cell(Tables& all, const ProcessIdentity& self, Message* message) {
  auto try_page = [&](const SharedPage& page) -> TransferCell* {
    for (std::uint32_t index = 1; index < SharedPage::kCells; ++index) {
      auto& cell = page.cell<TransferCell>(index);
      if (!cell.claim(self, message->block, &message->use)) continue;
      message->page = page.name();
      message->cell = index;
      return &cell;
    }
    return nullptr;
  };
  for (const auto& page : all.pages)
    if (TransferCell* cell = try_page(*page)) return *cell;
  all.pages.push_back(SharedPage::create());
  return *try_page(*all.pages.back());
}

struct ReadySignal {
  std::shared_ptr<SharedPage> page;
  std::uint32_t cell;
};

void signal_ready(void* context) {
  const std::unique_ptr<ReadySignal> signal(static_cast<ReadySignal*>(context));
  wake_shared(signal->page->cell<TransferCell>(signal->cell).ready);
}

std::shared_ptr<SharedPage> own_page(Tables& all, const PageName& name) {
  for (const auto& page : all.pages)
    if (page->name().fd == name.fd) return page;
  return nullptr;
}

// Looks at each process once.
class Living {
 public:
  bool has(std::int32_t pid, std::uint64_t start_time) {
    auto [entry, fresh] = seen_.try_emplace({pid, start_time}, true);
    if (fresh) entry->second = is_alive({start_time, pid, 0});
    return entry->second;
  }

 private:
  std::map<std::pair<std::int32_t, std::uint64_t>, bool> seen_;
};

// Calls `found(block)` for every reference there is to a block that `wanted` accepts; takes back those of the dead.
// `restart()` comes before a look at all of it, of which the last one counts.  Needs the lock.
template <typename Wanted, typename Found, typename Restart>
void for_each_reference(const Tables& all, Wanted wanted, Found found, Restart restart) {
  Living living;
  auto sent_on = [&] {
    std::uint64_t sum = 0;
    for (const auto& page : all.pages) sum += page->cell<PageHead>(0).sent_on.load(std::memory_order_acquire);
    return sum;
  };
  std::uint64_t before = 0;
  do {
    before = sent_on();
    restart();
    for (const auto& page : all.pages) {
      for (std::uint32_t index = 1; index < SharedPage::kCells; ++index) {
        auto& cell = page->cell<TransferCell>(index);
        const std::uint64_t word = cell.word.load(std::memory_order_acquire);
        const auto state = TransferCell::state_of(word);
        if (state == TransferCell::kFree) continue;
        const std::uint64_t block = cell.block.load(std::memory_order_relaxed);
        if (!wanted(block)) continue;
        const std::uint64_t start_time = cell.start_time.load(std::memory_order_acquire);
        if (state == TransferCell::kHeld && start_time != 0 && !living.has(TransferCell::pid_of(word), start_time)) {
          cell.release(TransferCell::use_of(word));
        } else {
          found(block);
        }
      }
    }
  } while (sent_on() != before);
}

// For a storage that is freed: its memory follows at once when nobody else uses it.
void forget_unless_referenced(std::uint64_t id) noexcept {
  if (!is_initialized()) return;
  SentContext finished;  // freed without the lock
  try {
    Tables& all = tables();
    std::lock_guard lock(all.mutex);
    const auto entry = all.sent.find(id);
    if (entry == all.sent.end()) return;
    bool referenced = false;
    for_each_reference(
        all, [&](std::uint64_t block) { return block == id; }, [&](std::uint64_t) { referenced = true; },
        [&] { referenced = false; });
    if (referenced) return;
    finished = std::move(entry->second);
    all.sent.erase(entry);
    all.sent_storages.erase(id);
  } catch (const std::exception&) {
    // Out of host memory: ipc_collect finds the same block.
  }
}

std::vector<Stream*> writers_of(const c10::Storage& storage, int device) {
  std::vector<Stream*> streams = caching_allocator().users_of(storage.data());
  streams.push_back(current_stream(device));
  return streams;
}

// ---- the receiver's side -------------------------------------------------------------------------------------------

void finish_received(void* context) {
  const std::unique_ptr<ReceivedBlock> block(static_cast<ReceivedBlock*>(context));
  driver().memory_close(block->address);
  block->cell().release(block->message.use);
}

void release_received(void* context) noexcept {
  auto* block = static_cast<ReceivedBlock*>(context);
  // The memory belongs to the parent, which still uses it.
  if (in_bad_fork()) return;
  try {
    after_streams(live_streams(block->device), block, &finish_received);
  } catch (const std::exception&) {
    // Out of host memory: the sender takes the reference back when this process ends.
  }
}

Message decode(std::string_view bytes) {
  Message message{};
  TORCH_CHECK(bytes.size() == sizeof(message) && std::memcmp(bytes.data(), kMagic, sizeof(kMagic)) == 0, "npu: these ",
              bytes.size(), " bytes are no message of a shared tensor; do all processes run the same ",
              "version of npu-core?", error_suffix(Submodule::PTA, ErrorCode::VALUE));
  std::memcpy(&message, bytes.data(), sizeof(message));
  return message;
}

int visible_device(int physical) {
  for (int device = 0; device < device_count(); ++device)
    if (driver_device(device) == physical) return device;
  TORCH_CHECK(false, "npu: a tensor on device ", physical,
              " of this machine was received, but this process does not see that device: check "
              "ASCEND_RT_VISIBLE_DEVICES and NPU_HOST_DEVICE_COUNT",
              error_suffix(Submodule::PTA, ErrorCode::NOT_FOUND));
}

struct ReadyWait {
  std::shared_ptr<SharedPage> page;
  Message message;
  bool release;  // the cell, when the wait is over
};

// Makes `stream` wait until the sender's work on the memory is done.
void wait_until_ready(Stream* stream, std::unique_ptr<ReadyWait> wait) {
  auto& cell = wait->page->cell<TransferCell>(wait->message.cell);
  if (cell.ready.load(std::memory_order_acquire) != 0) {
    if (wait->release) cell.release(wait->message.use);
    return;
  }
  ReadyWait* payload = wait.get();
  npu_task task{};
  task.name = "wait for the sender of a tensor";
  task.payload = &payload;
  task.payload_size = sizeof(payload);
  task.kind = NPU_TASK_BLOCKING;
  task.run = [](void* context, npu_error* error) {
    const ReadyWait& waited = **static_cast<ReadyWait**>(context);
    auto& ready = waited.page->cell<TransferCell>(waited.message.cell).ready;
    const auto sender = [&] { return waited.message.sender; };
    if (wait_shared(ready, [&] { return ready.load(std::memory_order_acquire) != 0; }, sender)) return NPU_OK;
    std::snprintf(error->message, sizeof(error->message),
                  "process %d, which sent the tensor, ended before its work on the tensor was done", sender().pid);
    return NPU_ERROR_TASK_FAILED;
  };
  task.destroy = [](void* context) {
    const std::unique_ptr<ReadyWait> waited(*static_cast<ReadyWait**>(context));
    if (waited->release) waited->page->cell<TransferCell>(waited->message.cell).release(waited->message.use);
  };
  check(driver().stream_submit(stream->native, &task), "stream_submit");
  wait.release();  // the task's from here on
}

c10::Storage own_storage(Tables& all, const Message& message) {
  const auto known = all.sent_storages.find(message.block);
  if (known != all.sent_storages.end())
    if (auto impl = known->second.lock()) return c10::Storage(std::move(impl));
  const SentContext block = all.sent.at(message.block);
  auto context = std::make_unique<SentContext>(block);
  c10::DataPtr memory(block->memory.get(), context.release(), &release_sent, block->memory.device());
  c10::Storage storage(c10::Storage::use_byte_size_t{}, message.bytes, std::move(memory), nullptr, false);
  all.sent_storages.insert_or_assign(message.block, storage.getWeakStorageImpl());
  return storage;
}

c10::Storage peer_storage(Tables& all, const Message& message, const std::shared_ptr<SharedPage>& page, Stream* stream,
                          bool* known) {
  const BlockKey key{message.page.owner.pid, message.page.owner.start_time, message.block, message.bytes};
  const auto entry = all.received.find(key);
  if (entry != all.received.end()) {
    if (auto impl = entry->second.lock()) {
      *known = true;
      return c10::Storage(std::move(impl));
    }
  }
  *known = false;
  if (all.received.size() >= kWeakLimit) std::erase_if(all.received, [](const auto& e) { return e.second.expired(); });
  void* address = nullptr;
  std::size_t bytes = 0;
  check(driver().memory_import(&message.memory, &address, &bytes), "memory_import");
  auto* block = new ReceivedBlock{message, page, address, stream->device, stream};
  c10::DataPtr memory(address, block, &release_received, torch_device(stream->device));
  c10::Storage storage(c10::Storage::use_byte_size_t{}, message.bytes, std::move(memory), nullptr, false);
  all.received.insert_or_assign(key, storage.getWeakStorageImpl());
  return storage;
}

// Often enough that what was sent does not pile up, seldom enough that looking at all of it costs little per message.
void collect_now_and_then() {
  Tables& all = tables();
  {
    std::lock_guard lock(all.mutex);
    if (++all.sent_since_collection <= all.sent.size() / 8) return;
  }
  ipc_collect();
}

// A received block goes on as a further reference in its owner's page, taken while this process holds its own.
TransferCell& send_on(const ReceivedBlock& received, const ProcessIdentity& self, Message* message) {
  const SharedPage& page = *received.page;
  for (std::uint32_t index = 1; index < SharedPage::kCells; ++index) {
    auto& cell = page.cell<TransferCell>(index);
    if (!cell.claim(self, message->block, &message->use)) continue;
    page.cell<PageHead>(0).sent_on.fetch_add(1, std::memory_order_release);
    message->cell = index;
    return cell;
  }
  TORCH_CHECK(false, "npu: process ", message->page.owner.pid, " has ", SharedPage::kCells - 1,
              " tensors under way to other processes; send a clone of the tensor instead",
              error_suffix(Submodule::PTA, ErrorCode::UNAVAIL));
}

}  // namespace

std::string export_storage(const c10::Storage& storage) {
  initialize();
  TORCH_CHECK(storage.device_type() == c10::DeviceType::PrivateUse1 && storage.nbytes() != 0,
              "npu: only storages on npu that are not empty can be shared, but got ", storage.nbytes(), " bytes on ",
              storage.device());
  static const bool expandable = AllocatorConfig::from_environment().expandable_segments;
  TORCH_CHECK(!expandable,
              "npu: sharing tensors between processes is not supported with expandable_segments:True; remove it from "
              "PYTORCH_NPU_ALLOC_CONF",
              error_suffix(Submodule::PTA, ErrorCode::NOT_SUPPORT));
  const int device = storage.device().index();
  resume_postponed();
  const ProcessIdentity self = this_process();
  Message message{};
  std::vector<Stream*> writers;
  auto signal = std::make_unique<ReadySignal>();
  if (is_received(storage.data_ptr())) {
    const auto& received = *static_cast<ReceivedBlock*>(storage.data_ptr().get_context());
    message = received.message;
    send_on(received, self, &message);
    signal->page = received.page;
    writers = {received.stream, current_stream(device)};
  } else {
    writers = writers_of(storage, device);
    collect_now_and_then();
    Tables& all = tables();
    std::lock_guard lock(all.mutex);
    const SentContext block = sent_block_of(all, storage);
    message.memory = block->handle;
    message.block = block->id;
    message.physical_device = driver_device(device);
    claim_cell(all, self, &message);
    all.sent.insert_or_assign(block->id, block);
    all.sent_storages.insert_or_assign(block->id, storage.getWeakStorageImpl());
    signal->page = own_page(all, message.page);
  }
  std::memcpy(message.magic, kMagic, sizeof(kMagic));
  message.sender = self;
  message.bytes = storage.nbytes();
  signal->cell = message.cell;
  after_streams(writers, signal.release(), &signal_ready);
  return std::string(reinterpret_cast<const char*>(&message), sizeof(message));
}

c10::Storage import_storage(std::string_view bytes) {
  const Message message = decode(bytes);
  initialize();
  resume_postponed();
  const ProcessIdentity self = this_process();
  const int device = visible_device(message.physical_device);
  Stream* const stream = current_stream(device);
  const bool own = message.page.owner == self;
  Tables& all = tables();
  std::shared_ptr<SharedPage> page;
  if (own) {
    std::lock_guard lock(all.mutex);
    page = own_page(all, message.page);
  } else {
    page = SharedPage::open(message.page, "a tensor");
  }
  TORCH_CHECK(page != nullptr && page->cell<TransferCell>(message.cell).hold(self, message.use),
              "npu: this message of a shared tensor was received before, and it was for one receiver only: send the "
              "tensor once to each",
              error_suffix(Submodule::PTA, ErrorCode::PARAM));
  c10::Storage storage;
  bool known = true;
  try {
    std::lock_guard lock(all.mutex);
    storage = own ? own_storage(all, message) : peer_storage(all, message, page, stream, &known);
  } catch (...) {
    page->cell<TransferCell>(message.cell).release(message.use);
    throw;
  }
  // A storage that is here already has a reference of its own.
  wait_until_ready(stream, std::make_unique<ReadyWait>(ReadyWait{page, message, known}));
  return storage;
}

void ipc_collect() noexcept {
  if (!is_initialized()) return;
  std::vector<SentContext> finished;  // freed without the lock
  try {
    resume_postponed();
    Tables& all = tables();
    std::lock_guard lock(all.mutex);
    if (all.sent.empty()) return;
    std::unordered_set<std::uint64_t> referenced;
    for_each_reference(
        all, [](std::uint64_t) { return true; }, [&](std::uint64_t block) { referenced.insert(block); },
        [&] { referenced.clear(); });
    all.sent_since_collection = 0;
    for (auto entry = all.sent.begin(); entry != all.sent.end();) {
      if (referenced.contains(entry->first)) {
        ++entry;
        continue;
      }
      finished.push_back(std::move(entry->second));
      all.sent_storages.erase(entry->first);
      entry = all.sent.erase(entry);
    }
  } catch (const std::exception&) {
    // Out of host memory: the next call finds the same blocks.
  }
}

}  // namespace npu
