// A link between forked ranks over socket pairs, in place of Gloo.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "collectives/host_link.h"

namespace npu::distributed::testing {

/// One connection per pair of ranks and channel, made before the ranks are forked.
class LinkMesh {
 public:
  static constexpr int kChannels = 6;  // the last one carries farewells
  explicit LinkMesh(int size) : size_(size), ends_(static_cast<size_t>(size * size * kChannels), -1) {
    for (int a = 0; a < size; ++a) {
      for (int b = a + 1; b < size; ++b) {
        for (int channel = 0; channel < kChannels; ++channel) {
          int pair[2];
          if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0) {
            throw std::runtime_error("socketpair");
          }
          ends_[Index(a, b, channel)] = pair[0];
          ends_[Index(b, a, channel)] = pair[1];
        }
      }
    }
  }
  int size() const { return size_; }
  /// The end of `rank` on its connection to `peer`.
  int End(int rank, int peer, int channel) const { return ends_[Index(rank, peer, channel)]; }
  /// Closes what other ranks use.
  void Keep(int rank) {
    for (int owner = 0; owner < size_; ++owner) {
      if (owner != rank) CloseEndsOf(owner);
    }
  }
  void CloseAll() {
    for (int owner = 0; owner < size_; ++owner) CloseEndsOf(owner);
  }

 private:
  size_t Index(int rank, int peer, int channel) const {
    return static_cast<size_t>((rank * size_ + peer) * kChannels + channel);
  }
  void CloseEndsOf(int owner) {
    for (int peer = 0; peer < size_; ++peer) {
      for (int channel = 0; channel < kChannels; ++channel) {
        int& end = ends_[Index(owner, peer, channel)];
        if (end >= 0) close(end);
        end = -1;
      }
    }
  }

  int size_;
  std::vector<int> ends_;
};

class FakeLink final : public HostLink {
 public:
  FakeLink(LinkMesh& mesh, int rank, std::chrono::milliseconds limit) : mesh_(mesh), rank_(rank), limit_(limit) {}

  std::unique_ptr<LinkOperation> Start(Channel channel, std::span<const Parcel> sends,
                                       std::span<const Parcel> receives) override {
    const std::lock_guard lock(mutex_);
    auto operation = std::make_unique<Operation>(*this);
    for (const Parcel& parcel : sends) Queue(channel, parcel, true, *operation);
    for (const Parcel& parcel : receives) Queue(channel, parcel, false, *operation);
    Progress();
    return operation;
  }

  void Break(npu_status status, const char* reason) noexcept override {
    const std::lock_guard lock(mutex_);
    if (broken_) return;
    broken_ = true;
    reason_ = reason;
    const std::string farewell = std::to_string(static_cast<int>(status)) + " " + reason;
    for (int peer = 0; peer < mesh_.size(); ++peer) {
      if (peer == rank_) continue;
      (void)!send(mesh_.End(rank_, peer, LinkMesh::kChannels - 1), farewell.data(), farewell.size(), MSG_NOSIGNAL);
      for (int channel = 0; channel < LinkMesh::kChannels; ++channel) {
        shutdown(mesh_.End(rank_, peer, channel), SHUT_WR);
      }
    }
  }

 private:
  struct Message {
    int peer;
    std::byte* data = nullptr;  // a receive: where to; a send keeps a copy in `frame`
    size_t room = 0;
    std::vector<std::byte> frame;
    uint64_t length = 0;
    size_t moved = 0;  // including the length in front
    bool done = false;
    bool lost = false;
  };
  using Key = std::pair<int, int>;  // peer, channel

  struct Operation final : LinkOperation {
    explicit Operation(FakeLink& link) : link(link) {}
    void Wait() override { link.WaitFor(messages, link.limit_); }
    void WaitForEver() override { link.WaitFor(messages, {}); }
    FakeLink& link;
    std::vector<std::shared_ptr<Message>> messages;
  };

  void Queue(Channel channel, const Parcel& parcel, bool is_send, Operation& operation) {
    if (parcel.bytes == 0) return;
    auto message = std::make_shared<Message>();
    message->peer = parcel.peer;
    if (is_send) {
      const uint64_t length = parcel.bytes;
      message->frame.resize(sizeof length + parcel.bytes);
      std::memcpy(message->frame.data(), &length, sizeof length);
      std::memcpy(message->frame.data() + sizeof length, parcel.data, parcel.bytes);
    } else {
      message->data = parcel.data;
      message->room = parcel.bytes;
    }
    auto& queue = is_send ? outgoing_ : incoming_;
    queue[{parcel.peer, static_cast<int>(channel)}].push_back(message);
    operation.messages.push_back(message);
  }

  void Progress() {
    for (auto& [key, queue] : outgoing_) {
      while (!queue.empty() && Send(mesh_.End(rank_, key.first, key.second), *queue.front())) queue.pop_front();
    }
    for (auto& [key, queue] : incoming_) {
      while (!queue.empty() && Receive(mesh_.End(rank_, key.first, key.second), *queue.front())) queue.pop_front();
    }
  }

  static bool Send(int end, Message& message) {
    while (message.moved < message.frame.size()) {
      const ssize_t sent =
          send(end, message.frame.data() + message.moved, message.frame.size() - message.moved, MSG_NOSIGNAL);
      if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
      if (sent <= 0) return message.lost = true;
      message.moved += static_cast<size_t>(sent);
    }
    return message.done = true;
  }

  static bool Receive(int end, Message& message) {
    for (;;) {
      const bool in_length = message.moved < sizeof message.length;
      if (!in_length && message.moved == sizeof message.length + message.length) return message.done = true;
      std::byte* to = in_length ? reinterpret_cast<std::byte*>(&message.length) + message.moved
                                : message.data + (message.moved - sizeof message.length);
      const size_t wanted =
          in_length ? sizeof message.length - message.moved : sizeof message.length + message.length - message.moved;
      if (!in_length && message.length > message.room) return message.lost = true;
      const ssize_t got = recv(end, to, wanted, 0);
      if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
      if (got <= 0) return message.lost = true;
      message.moved += static_cast<size_t>(got);
    }
  }

  void WaitFor(const std::vector<std::shared_ptr<Message>>& messages, std::chrono::milliseconds limit) {
    const auto begin = std::chrono::steady_clock::now();
    for (const std::shared_ptr<Message>& message : messages) {
      for (;;) {
        {
          const std::lock_guard lock(mutex_);
          if (!message->done) Progress();
          if (message->done) break;
          if (broken_) throw LinkError(LinkError::Cause::kBroken, message->peer, reason_);
          if (message->lost) Throw(message->peer);
        }
        if (limit.count() > 0 && std::chrono::steady_clock::now() - begin > limit) {
          throw LinkError(LinkError::Cause::kTimeout, message->peer, "too late");
        }
        usleep(50);
      }
    }
  }

  [[noreturn]] void Throw(int peer) {
    LinkError error(LinkError::Cause::kLost, peer, "connection closed");
    char text[2000];
    const ssize_t length = recv(mesh_.End(rank_, peer, LinkMesh::kChannels - 1), text, sizeof text - 1, MSG_PEEK);
    if (length > 0) {
      text[length] = '\0';
      char* rest = nullptr;
      error.reason_status = static_cast<npu_status>(std::strtol(text, &rest, 10));
      error.reason = rest + 1;
    }
    throw error;
  }

  LinkMesh& mesh_;
  const int rank_;
  const std::chrono::milliseconds limit_;
  std::mutex mutex_;
  bool broken_ = false;
  std::string reason_;
  std::map<Key, std::deque<std::shared_ptr<Message>>> outgoing_;
  std::map<Key, std::deque<std::shared_ptr<Message>>> incoming_;
};

}  // namespace npu::distributed::testing
