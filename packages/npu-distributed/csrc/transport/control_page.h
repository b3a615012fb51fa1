// The shared page through which the ranks of one group on one machine meet.
//
// An anonymous memory file: rank 0 creates it, the others open it through /proc/<pid>/fd/<n> and every descriptor is
// closed once all have mapped it.  So nothing has a name, and nothing is left behind however the processes end.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "npu/driver.h"
#include "transport/doorbell.h"
#include "transport/process_identity.h"
#include "transport/transport.h"

namespace npu::distributed {

/// Payloads up to this size travel in the page itself: one meeting instead of two, no mapping of peer memory.
inline constexpr size_t kInlineBytes = 8192;

/// A rank's announcement.  There are two per rank, used in turn: a rank can be at most one call ahead of the slowest,
/// because Meet waits for everybody, so the announcement of the call before stays readable.
struct AnnouncementHeader {
  Call call;
  uint32_t payload_bytes;
  uint32_t region_count;
};

/// Progress of one rank.  Own cache line: written by its rank, read by all.
struct alignas(128) RankState {
  std::atomic<uint64_t> arrived;  ///< number of the last call announced
  std::atomic<uint64_t> parted;   ///< number of the last call finished
  std::atomic<uint32_t> left;     ///< 1 after Leave
  /// Pieces of this rank's share claimed so far, for call number modulo 4 (see ControlPage::ClearClaims).
  std::atomic<uint32_t> claimed[4];
  /// Rung when a message for this rank is posted, or one of its own is taken.
  alignas(128) Doorbell mail;
};

struct MessageSlot {
  uint64_t number;
  Extent extent;
  ElementType element;
  uint32_t in_payload;  ///< 1: the bytes are in `payload`; 0: in the memory that `handle` names
  npu_memory_handle handle;
  std::byte payload[kInlineBytes];
};

/// Messages from one rank to another: a ring that only these two use.
struct Mailbox {
  static constexpr size_t kSlots = 8;
  alignas(128) std::atomic<uint64_t> posted;  ///< messages put in, written by the sender
  alignas(128) std::atomic<uint64_t> taken;   ///< messages taken out, written by the receiver
  alignas(128) MessageSlot slots[kSlots];
};

class ControlPage {
 public:
  /// A new page with a descriptor that peers may open until Seal.  `regions`: most regions one call can announce.
  static std::unique_ptr<ControlPage> Create(int size, int regions, uint64_t nonce);
  /// The page that `creator` holds as descriptor `creator_fd`.  Throws CommError when it cannot be opened or is another
  /// group's.
  static std::unique_ptr<ControlPage> Open(const ProcessIdentity& creator, int creator_fd, int size, int regions);
  ~ControlPage();
  ControlPage(const ControlPage&) = delete;
  ControlPage& operator=(const ControlPage&) = delete;

  int fd() const { return fd_; }
  /// Closes the descriptor: the page is reachable only through the mappings made so far.
  void Seal();

  Doorbell& bell();
  std::atomic<uint32_t>& joined();
  RankState& state(int rank);
  AnnouncementHeader& header(int rank, uint64_t call);
  Extent* region_extents(int rank, uint64_t call);
  npu_memory_handle* region_handles(int rank, uint64_t call);
  std::byte* payload(int rank, uint64_t call);
  size_t region_capacity() const { return region_capacity_; }
  Mailbox& mailbox(int from, int to);

  /// Wakes everybody who waits for anything.
  void RingAll() noexcept;

  /// Stores the first failure of the group; later ones are ignored.
  void SetFailure(int rank, npu_status status, const char* text) noexcept;
  /// Text of the group's failure, or nullptr.
  const char* failure(int* rank, npu_status* status) const;

 private:
  ControlPage(int fd, int size, int regions);
  void Map();

  int fd_;
  int size_;
  size_t region_capacity_;
  size_t slot_bytes_;
  size_t mail_begin_;
  size_t bytes_;
  std::byte* base_ = nullptr;
};

}  // namespace npu::distributed
