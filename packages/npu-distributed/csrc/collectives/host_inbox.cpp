#include "collectives/host_inbox.h"

#include <cstring>
#include <vector>

#include "collectives/lanes.h"

namespace npu::distributed {

HostInbox::HostInbox(HostLink& link, int peer, const std::atomic<int>& sends_waiting)
    : link_(link), peer_(peer), sends_waiting_(sends_waiting), reader_([this] { Read(); }) {}

HostInbox::~HostInbox() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  reader_.join();
}

void HostInbox::Wake() {
  const std::lock_guard lock(mutex_);
  changed_.notify_all();
}

void HostInbox::Receive(std::chrono::milliseconds limit,
                        const std::function<std::byte*(const MessageHeader&)>& accept) {
  std::unique_lock lock(mutex_);
  struct Receiving {
    explicit Receiving(bool& flag) : flag(flag) { flag = true; }
    ~Receiving() { flag = false; }
    bool& flag;
  } receiving(receiving_);  // ends before the lock does
  const auto ready = [&] { return !taken_.empty() || offered_ || error_; };
  if (limit.count() <= 0) {
    changed_.wait(lock, ready);
  } else if (!changed_.wait_for(lock, limit, ready)) {
    throw LinkError(LinkError::Cause::kTimeout, peer_, "no message has come");
  }
  if (!taken_.empty()) {
    const Taken& message = taken_.front();
    std::byte* to = accept(message.header);
    if (message.header.extent.bytes != 0) std::memcpy(to, message.data.get(), message.header.extent.bytes);
    taken_.pop_front();
    return;
  }
  if (!offered_) throw LinkError(*error_);
  const MessageHeader header = *offered_;
  std::byte* to = accept(header);
  lock.unlock();  // the reader leaves an offer alone while a receive is there
  try {
    Fetch(to, header.extent.bytes);
  } catch (...) {
    lock.lock();
    throw;
  }
  lock.lock();
  offered_.reset();
  changed_.notify_all();
}

void HostInbox::Fetch(std::byte* to, size_t bytes) {
  const Parcel parcel{peer_, to, bytes};
  link_.Start(Channel::kMessages, {}, {&parcel, 1})->Wait();
}

void HostInbox::Read() {
  std::optional<LinkError> error;
  try {
    ReadMessages();
    return;
  } catch (const LinkError& caught) {
    error = caught;
  } catch (const std::exception& caught) {
    error.emplace(LinkError::Cause::kLost, peer_, caught.what());
  }
  const std::lock_guard lock(mutex_);
  error_ = std::move(error);
  changed_.notify_all();
}

void HostInbox::ReadMessages() {
  std::vector<std::byte> room(sizeof(MessageHeader) + kSmallData);
  for (;;) {
    const Parcel parcel{peer_, room.data(), room.size()};
    link_.Start(Channel::kMessageHeaders, {}, {&parcel, 1})->WaitForEver();
    Taken message{};
    std::memcpy(&message.header, room.data(), sizeof message.header);
    const size_t bytes = message.header.extent.bytes;
    std::unique_lock lock(mutex_);
    if (message.header.inside != 0) {
      message.data = std::make_unique_for_overwrite<std::byte[]>(bytes);
      std::memcpy(message.data.get(), room.data() + sizeof message.header, bytes);
    } else {
      offered_ = message.header;
      changed_.notify_all();
      changed_.wait(lock, [&] { return stop_ || !offered_ || (!receiving_ && sends_waiting_.load() > 0); });
      if (stop_) return;
      if (!offered_) continue;
      offered_.reset();
      lock.unlock();
      message.data = std::make_unique_for_overwrite<std::byte[]>(bytes);
      Fetch(message.data.get(), bytes);
      lock.lock();
    }
    taken_.push_back(std::move(message));
    changed_.notify_all();
  }
}

}  // namespace npu::distributed
