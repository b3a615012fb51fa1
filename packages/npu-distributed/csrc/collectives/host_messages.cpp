// Point-to-point transfers: local ones through the mailboxes of the control page, others over the link.
//
// Over the link a header goes first.  A short message travels inside it, as a copy: sending it does not wait for the
// receiver.
#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <string>

#include "collectives/hierarchical_collectives.h"
#include "collectives/lanes.h"
#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

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
      const MessageHeader header{++messages_sent_[slot], transfer->data.extent(), transfer->element, inside ? 1u : 0u};
      ShortMessage message;
      message.bytes.resize(sizeof header + (inside ? bytes : 0));
      std::memcpy(message.bytes.data(), &header, sizeof header);
      if (inside && bytes != 0) std::memcpy(message.bytes.data() + sizeof header, transfer->data.address, bytes);
      const Parcel first{peer, message.bytes.data(), message.bytes.size()};
      message.operation = link_->Start(Channel::kMessageHeaders, {&first, 1}, {});
      if (inside) {
        std::deque<ShortMessage>& under_way = under_way_[slot];
        under_way.push_back(std::move(message));
        for (; under_way.size() > kMostUnderWay; under_way.pop_front()) {
          WaitForSend(*under_way.front().operation);
        }
        continue;
      }
      headers.push_back(std::move(message));
      const Parcel second{peer, static_cast<std::byte*>(transfer->data.address), bytes};
      sends.push_back(link_->Start(Channel::kMessages, {&second, 1}, {}));
    }
  }
  {
    const std::lock_guard order(receive_order_[slot]);
    HostInbox& inbox = InboxOf(peer);
    for (const Transfer* transfer : conversation.transfers) {
      if (transfer->is_send) continue;
      const uint64_t number = ++messages_received_[slot];
      const Counted counted(waiting_);
      inbox.Receive(limit_, [&](const MessageHeader& header) {
        if (!Fits(header.extent, transfer->data.extent()) || header.element != transfer->element ||
            header.number != number) {
          throw CommError(NPU_ERROR_TASK_FAILED,
                          DescribeMessageMismatch(number, NumberOf(peer), header.extent, header.element,
                                                  NumberOf(rank_), transfer->data.extent(), transfer->element));
        }
        return static_cast<std::byte*>(transfer->data.address);
      });
    }
  }
  for (const ShortMessage& header : headers) WaitForSend(*header.operation);
  for (const std::unique_ptr<LinkOperation>& send : sends) WaitForSend(*send);
}

HostInbox& HierarchicalCollectives::InboxOf(int peer) {
  const std::lock_guard lock(inbox_mutex_);
  std::unique_ptr<HostInbox>& inbox = inboxes_[static_cast<size_t>(peer)];
  if (!inbox) inbox = std::make_unique<HostInbox>(*link_, peer, sends_waiting_);
  return *inbox;
}

/// Any rank of another host may wait in a send to this one meanwhile, so all their messages are taken in.
void HierarchicalCollectives::WhileSending(const std::function<void()>& wait) {
  const Counted counted(sends_waiting_);
  for (int peer = 0; peer < size(); ++peer) {
    if (!IsLocal(peer)) InboxOf(peer).Wake();
  }
  wait();
}

void HierarchicalCollectives::WaitForSend(LinkOperation& operation) {
  WhileSending([&] { Wait(operation); });
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
  if (!local.empty()) {
    parts.push_back([&] {
      const bool sends = std::any_of(local.begin(), local.end(), [](const Transfer& one) { return one.is_send; });
      const auto exchange = [&] { transport_.mailboxes().Exchange(local); };
      sends ? WhileSending(exchange) : exchange();
    });
  }
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
