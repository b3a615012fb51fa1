// Messages between two ranks of one machine: posted in the control page, taken by the receiver.
//
// Every ordered pair of ranks has a ring of slots.  A short message travels in its slot, so sending it ends at once
// while the ring has room; of a long one the slot names the sender's memory, from which the receiver copies.
//
// A rank that waits in a send takes in what has been posted to it (copied to host memory, a later receive finds it
// there).  So ranks that all send before they receive do not wait for each other for ever.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "transport/control_page.h"
#include "transport/device_memory.h"
#include "transport/peers.h"
#include "transport/transport.h"

namespace npu::distributed {

class Mailboxes {
 public:
  Mailboxes(const Peers& peers, ControlPage& page, DeviceMemory& memory);
  Mailboxes(const Mailboxes&) = delete;
  Mailboxes& operator=(const Mailboxes&) = delete;

  /// Carries out all transfers, in whatever order the peers come.  A send to the own rank that this call does not
  /// receive is kept for a later one.  Thread-safe; calls that share a peer match in the order in which they begin.
  /// Throws CommError.
  void Exchange(std::span<const Transfer> transfers);

 private:
  /// A message taken in before its receive came.
  struct EarlyMessage {
    ElementType element;
    Extent extent;
    std::unique_ptr<std::byte[]> data;
  };

  /// What comes from one rank.  The mutex is held while a message is copied, and so are its mappings.
  struct Incoming {
    Incoming(DeviceMemory& memory, int peer) : peer(peer), imports(memory, 1) {}
    std::mutex mutex;
    const int peer;
    uint64_t begun = 0;     ///< receives that have begun
    uint64_t finished = 0;  ///< receives that have got their message
    std::deque<EarlyMessage> early;
    ImportCache imports;
  };

  struct Pending {
    const Transfer* transfer;
    uint64_t number;  ///< among the messages of this ordered pair, from 1
    bool posted = false;
  };

  bool Progress(std::vector<Pending>& pending);
  bool TryFinish(Pending& pending);
  bool TrySend(Pending& pending);
  bool TryReceive(const Pending& pending);
  void ExchangeWithSelf(std::span<const Transfer> transfers);
  void Wait(std::vector<Pending>& pending);
  void TakeIn(int peer);
  const MessageSlot* NextPosted(Incoming& incoming);
  const std::byte* Locate(Incoming& incoming, const MessageSlot& slot);
  void MarkTaken(int peer);
  /// Number of the last message of the pair that the peer has taken (of a send) or posted (of a receive).
  uint64_t PeerProgress(const Transfer& transfer) const;
  EarlyMessage Keep(ElementType element, const void* data, const Extent& extent) const;
  void RequireSame(const Pending& pending, ElementType element, const Extent& sent) const;
  std::string Describe(const Pending& pending) const;
  std::string DescribeTimeout(const std::vector<Pending>& pending) const;

  const Peers& peers_;
  ControlPage& page_;
  DeviceMemory& memory_;
  std::vector<std::atomic<uint64_t>> sends_begun_;
  std::deque<Incoming> incoming_;
};

}  // namespace npu::distributed
