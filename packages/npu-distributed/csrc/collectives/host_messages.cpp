// Point-to-point transfers: local ones through the mailboxes of the control page, others over the link.
//
// Over the link a header goes first, so that a receiver can tell a message that does not fit from one that does.  A
// short message travels inside its header, as a copy: sending it does not wait for the receiver.
#include <cstring>
#include <exception>
#include <map>
#include <string>

#include "collectives/hierarchical_collectives.h"
#include "collectives/lanes.h"
#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

struct MessageHeader {
  uint64_t number;  ///< among the messages of this ordered pair, from 1
  uint64_t bytes;
  ElementType element;
  uint32_t inside;  ///< 1: the message follows in the same parcel
};

constexpr size_t kHeaderRoom = sizeof(MessageHeader) + kSmallData;

/// Short messages to one rank that may be on their way before a send waits for the oldest.
constexpr size_t kMostUnderWay = 64;

}  // namespace

struct HierarchicalCollectives::Conversation {
  int peer = 0;
  std::vector<const Transfer*> transfers;
};

/// Carries out the transfers with one rank of another host: all sends are under way while the receives come.
void HierarchicalCollectives::Converse(Conversation& conversation) {
  const int peer = conversation.peer;
  const auto slot = static_cast<size_t>(peer);
  std::vector<ShortMessage> headers;  // of messages that do not travel inside them
  std::vector<std::unique_ptr<LinkOperation>> sends;
  {
    const std::lock_guard order(send_order_[slot]);
    for (const Transfer* transfer : conversation.transfers) {
      if (!transfer->is_send) continue;
      const size_t bytes = transfer->data.bytes;
      const bool inside = bytes <= kSmallData;
      const MessageHeader header{++messages_sent_[slot], bytes, transfer->element, inside ? 1u : 0u};
      ShortMessage message;
      message.bytes.resize(sizeof header + (inside ? bytes : 0));
      std::memcpy(message.bytes.data(), &header, sizeof header);
      if (inside && bytes != 0) std::memcpy(message.bytes.data() + sizeof header, transfer->data.address, bytes);
      const Parcel first{peer, message.bytes.data(), message.bytes.size()};
      message.operation = link_->Start(Channel::kMessageHeaders, {&first, 1}, {});
      if (inside) {
        std::deque<ShortMessage>& under_way = under_way_[slot];
        under_way.push_back(std::move(message));
        for (; under_way.size() > kMostUnderWay; under_way.pop_front()) Wait(*under_way.front().operation);
        continue;
      }
      headers.push_back(std::move(message));
      const Parcel second{peer, static_cast<std::byte*>(transfer->data.address), bytes};
      sends.push_back(link_->Start(Channel::kMessages, {&second, 1}, {}));
    }
  }
  {
    const std::lock_guard order(receive_order_[slot]);
    std::vector<std::byte> room(kHeaderRoom);
    for (const Transfer* transfer : conversation.transfers) {
      if (transfer->is_send) continue;
      const Parcel first{peer, room.data(), room.size()};
      Wait(*link_->Start(Channel::kMessageHeaders, {}, {&first, 1}));
      MessageHeader header{};
      std::memcpy(&header, room.data(), sizeof header);
      const uint64_t number = ++messages_received_[slot];
      if (header.bytes != transfer->data.bytes || header.element != transfer->element || header.number != number) {
        throw CommError(NPU_ERROR_TASK_FAILED, DescribeMessageMismatch(number, peer, header.bytes, header.element,
                                                                       rank_, transfer->data.bytes, transfer->element));
      }
      if (header.inside != 0) {
        if (header.bytes != 0) std::memcpy(transfer->data.address, room.data() + sizeof header, header.bytes);
        continue;
      }
      const Parcel second{peer, static_cast<std::byte*>(transfer->data.address), transfer->data.bytes};
      Wait(*link_->Start(Channel::kMessages, {}, {&second, 1}));
    }
  }
  for (const ShortMessage& header : headers) Wait(*header.operation);
  for (const std::unique_ptr<LinkOperation>& send : sends) Wait(*send);
}

/// Short messages that nobody has taken yet end with the link, so the last steps of a rank wait for them.
void HierarchicalCollectives::Leave() noexcept {
  for (size_t peer = 0; peer < under_way_.size(); ++peer) {
    const std::lock_guard order(send_order_[peer]);
    for (std::deque<ShortMessage>& left = under_way_[peer]; !left.empty(); left.pop_front()) {
      try {
        Wait(*left.front().operation);
      } catch (const LinkError&) {
        continue;  // the group has failed, or the peer has gone without taking them
      }
    }
  }
  transport_.Leave();
}

void HierarchicalCollectives::Exchange(std::span<const Transfer> transfers) {
  std::vector<Transfer> local;
  std::map<int, Conversation> remote;
  for (const Transfer& transfer : transfers) {
    if (transfer.peer < 0 || transfer.peer >= size()) {
      throw CommError(NPU_ERROR_INVALID_ARGUMENT, "hccl: the peer of a transfer should be a rank in [0, " +
                                                      std::to_string(size()) + "), but got " +
                                                      std::to_string(transfer.peer));
    }
    if (IsLocal(transfer.peer)) {
      local.push_back(transfer);
      local.back().peer = hosts_.IndexOf(transfer.peer);
    } else {
      remote[transfer.peer].peer = transfer.peer;
      remote[transfer.peer].transfers.push_back(&transfer);
    }
  }
  // Each peer, and the neighbours together, may come at any time and in any order, so each has a thread of its own; the
  // last one uses this thread.
  std::vector<std::function<void()>> parts;
  if (!local.empty()) parts.push_back([&] { transport_.mailboxes().Exchange(local); });
  for (auto& [peer, conversation] : remote) {
    parts.push_back([this, &conversation = conversation] {
      const std::string where = " in an exchange of messages";
      try {
        transport_.peers().ThrowIfFailed();
        Converse(conversation);
      } catch (const LinkError& error) {
        FailLink(error, where);
      } catch (const CommError& error) {
        Fail(error.status(), error.what());
      }
    });
  }
  if (parts.empty()) return;
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto run = [&](const std::function<void()>& part) {
    try {
      part();
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (size_t i = 0; i + 1 < parts.size(); ++i) threads.emplace_back(run, std::cref(parts[i]));
  run(parts.back());
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace npu::distributed
