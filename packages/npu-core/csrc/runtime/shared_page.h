#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "process_identity.h"

namespace npu {

// Names a page for other processes.  Plain bytes.
struct PageName {
  ProcessIdentity owner;
  std::uint64_t inode;
  std::uint64_t filesystem;
  std::int32_t fd;  // of the owner
  std::int32_t reserved;
};

// 64 KiB of memory that other processes of the user can map, in cells of 64 bytes that start as zero.  The memory has
// no name in the file system: peers open it through the owner's /proc entry, and it is gone with its last mapping.
class SharedPage {
 public:
  static constexpr std::size_t kBytes = 65536;
  static constexpr std::size_t kCellBytes = 64;
  static constexpr std::uint32_t kCells = kBytes / kCellBytes;

  static std::shared_ptr<SharedPage> create();
  // A page of a living process.  Throws when it has ended; `what` names what the caller wants in the message.
  static std::shared_ptr<SharedPage> open(const PageName& name, const char* what);

  SharedPage(const SharedPage&) = delete;
  SharedPage& operator=(const SharedPage&) = delete;
  ~SharedPage();

  const PageName& name() const { return name_; }

  // The atomics of a cell work across processes because they are lock-free.
  template <typename Cell>
  Cell& cell(std::uint32_t index) const {
    static_assert(sizeof(Cell) <= kCellBytes);
    return *reinterpret_cast<Cell*>(base_ + index * kCellBytes);
  }

 private:
  static std::shared_ptr<SharedPage> open_now(const PageName& name, const char* what);
  SharedPage(std::byte* base, const PageName& name, bool own) : base_(base), name_(name), own_(own) {}
  std::byte* base_;
  PageName name_;
  bool own_;
};

// Sleeping until a word of a shared page changes.  A waiter also wakes now and then to see whether `waker` still
// lives: waiting returns false when it has ended and `done` is still false.
bool wait_shared(std::atomic<std::uint32_t>& word, const std::function<bool()>& done,
                 const std::function<ProcessIdentity()>& waker);
// To call after the change that waiters look for.
void wake_shared(std::atomic<std::uint32_t>& word) noexcept;

}  // namespace npu
