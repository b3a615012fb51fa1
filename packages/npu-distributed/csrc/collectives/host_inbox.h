// Messages from one rank of another host: a thread reads their headers and takes in what may not wait.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "collectives/host_link.h"
#include "transport/call.h"

namespace npu::distributed {

/// Goes before a message over the link, so that a receiver can tell one that does not fit from one that does.
struct MessageHeader {
  uint64_t number;  ///< among the messages of this ordered pair, from 1
  Extent extent;
  ElementType element;
  uint32_t inside;  ///< 1: the message follows in the same parcel
};

/// A short message is read with its header.  A long one stays with its sender until a receive asks for it, or until a
/// send of this rank waits: then it goes to host memory, where a later receive finds it.  So ranks that all send before
/// they receive do not wait for each other for ever, and a sender does not run far ahead of a receiver that is busy.
class HostInbox {
 public:
  /// `sends_waiting` counts the threads of this rank that wait in a send.  All must outlive this.
  HostInbox(HostLink& link, int peer, const std::atomic<int>& sends_waiting);
  /// The link must have been broken: nothing else ends the wait for a header.
  ~HostInbox();

  /// Gives the next message the room that `accept` names, waiting for `limit` (zero: for ever).  What `accept` throws
  /// goes through.  Throws LinkError.  One call at a time.
  void Receive(std::chrono::milliseconds limit, const std::function<std::byte*(const MessageHeader&)>& accept);

  /// Call it when a send has begun to wait.
  void Wake();

 private:
  struct Taken {
    MessageHeader header;
    std::unique_ptr<std::byte[]> data;
  };

  void Read();
  void ReadMessages();
  void Fetch(std::byte* to, size_t bytes);

  HostLink& link_;
  const int peer_;
  const std::atomic<int>& sends_waiting_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Taken> taken_;
  std::optional<MessageHeader> offered_;  ///< a long message after those in `taken_`, still with its sender
  bool receiving_ = false;
  bool stop_ = false;
  std::optional<LinkError> error_;  ///< why no more will come
  std::thread reader_;
};

}  // namespace npu::distributed
