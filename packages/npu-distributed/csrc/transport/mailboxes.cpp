#include "transport/mailboxes.h"

#include <algorithm>
#include <cstring>

#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

using Clock = std::chrono::steady_clock;

/// How long a send waits before this rank takes in messages of other ranks than its receiver: long enough that a
/// pipeline whose next stage is merely busy does not pile up copies, short enough for a ring of sends to come apart.
constexpr std::chrono::milliseconds kTakeInFromAll{20};

const char* Verb(const Transfer& transfer) { return transfer.is_send ? "send" : "receive"; }

}  // namespace

Mailboxes::Mailboxes(const Peers& peers, ControlPage& page, DeviceMemory& memory)
    : peers_(peers), page_(page), memory_(memory), sends_begun_(static_cast<size_t>(peers.size())) {
  for (int peer = 0; peer < peers.size(); ++peer) incoming_.emplace_back(memory, peer);
}

void Mailboxes::Exchange(std::span<const Transfer> transfers) {
  for (const Transfer& transfer : transfers) {
    if (transfer.peer >= 0 && transfer.peer < peers_.size()) continue;
    throw CommError(NPU_ERROR_INVALID_ARGUMENT, "hccl: the peer of a " + std::string(Verb(transfer)) +
                                                    " should be a rank in [0, " + std::to_string(peers_.size()) +
                                                    "), but got " + std::to_string(transfer.peer));
  }
  peers_.ThrowIfFailed();
  std::vector<Pending> pending;
  pending.reserve(transfers.size());
  for (const Transfer& transfer : transfers) {
    if (transfer.peer == peers_.rank()) continue;
    if (transfer.is_send) {
      const uint64_t number = ++sends_begun_[static_cast<size_t>(transfer.peer)];
      pending.push_back({&transfer, number});
    } else {
      Incoming& incoming = incoming_[static_cast<size_t>(transfer.peer)];
      const std::lock_guard lock(incoming.mutex);
      pending.push_back({&transfer, ++incoming.begun});
    }
  }
  try {
    ExchangeWithSelf(transfers);
    while (!pending.empty()) {
      if (!Progress(pending)) Wait(pending);
    }
  } catch (const CommError& error) {
    peers_.Fail(error.status(), error.what());
  }
}

// ---- moving ---------------------------------------------------------------------------------------------------------

bool Mailboxes::Progress(std::vector<Pending>& pending) {
  // In order, so that the slots of a ring are filled and emptied in one pass.
  const auto unfinished =
      std::stable_partition(pending.begin(), pending.end(), [&](Pending& one) { return !TryFinish(one); });
  const bool any = unfinished != pending.end();
  pending.erase(unfinished, pending.end());
  return any;
}

bool Mailboxes::TryFinish(Pending& pending) {
  return pending.transfer->is_send ? TrySend(pending) : TryReceive(pending);
}

bool Mailboxes::TrySend(Pending& pending) {
  const Transfer& transfer = *pending.transfer;
  Mailbox& box = page_.mailbox(peers_.rank(), transfer.peer);
  const uint64_t taken = box.taken.load(std::memory_order_acquire);
  if (!pending.posted) {
    // Another thread may still have to post the message before this one.
    const bool is_next = box.posted.load(std::memory_order_acquire) + 1 == pending.number;
    if (!is_next || pending.number > taken + Mailbox::kSlots) return false;
    MessageSlot& slot = box.slots[(pending.number - 1) % Mailbox::kSlots];
    slot.number = pending.number;
    slot.extent = transfer.data.extent();
    slot.element = transfer.element;
    slot.in_payload = transfer.data.bytes <= kInlineBytes ? 1 : 0;
    if (slot.in_payload == 0) {
      slot.handle = memory_.Export(transfer.data.address, transfer.data.bytes);
    } else if (transfer.data.bytes != 0) {
      std::memcpy(slot.payload, transfer.data.address, transfer.data.bytes);
    }
    box.posted.store(pending.number, std::memory_order_release);
    page_.state(transfer.peer).mail.Ring();
    // A thread of this process may wait to post the message after this one.
    if (sends_begun_[static_cast<size_t>(transfer.peer)] > pending.number) page_.state(peers_.rank()).mail.Ring();
    pending.posted = true;
    return slot.in_payload == 1;
  }
  return taken >= pending.number;
}

bool Mailboxes::TryReceive(const Pending& pending) {
  const Transfer& transfer = *pending.transfer;
  Incoming& incoming = incoming_[static_cast<size_t>(transfer.peer)];
  const std::lock_guard lock(incoming.mutex);
  if (incoming.finished + 1 != pending.number) return false;
  if (!incoming.early.empty()) {
    const EarlyMessage& message = incoming.early.front();
    RequireSame(pending, message.element, message.extent);
    if (message.data) std::memcpy(transfer.data.address, message.data.get(), message.extent.bytes);
    incoming.early.pop_front();
  } else {
    const MessageSlot* slot = NextPosted(incoming);
    if (slot == nullptr) return false;
    RequireSame(pending, slot->element, slot->extent);
    if (slot->extent.bytes != 0) std::memcpy(transfer.data.address, Locate(incoming, *slot), transfer.data.bytes);
    MarkTaken(transfer.peer);
  }
  ++incoming.finished;
  // A thread of this process may wait to receive the message after this one.
  if (incoming.begun > incoming.finished) page_.state(peers_.rank()).mail.Ring();
  return true;
}

void Mailboxes::ExchangeWithSelf(std::span<const Transfer> transfers) {
  Incoming& incoming = incoming_[static_cast<size_t>(peers_.rank())];
  std::vector<const Transfer*> sends;
  std::vector<const Transfer*> receives;
  for (const Transfer& transfer : transfers) {
    if (transfer.peer == peers_.rank()) (transfer.is_send ? sends : receives).push_back(&transfer);
  }
  if (sends.empty() && receives.empty()) return;
  const std::lock_guard lock(incoming.mutex);
  size_t sent = 0;
  for (const Transfer* receive : receives) {
    const Pending pending{receive, ++incoming.finished};
    if (!incoming.early.empty()) {
      const EarlyMessage& message = incoming.early.front();
      RequireSame(pending, message.element, message.extent);
      if (message.data) std::memcpy(receive->data.address, message.data.get(), message.extent.bytes);
      incoming.early.pop_front();
    } else if (sent < sends.size()) {
      const Transfer& send = *sends[sent++];
      RequireSame(pending, send.element, send.data.extent());
      if (send.data.bytes != 0) std::memmove(receive->data.address, send.data.address, send.data.bytes);
    } else {
      throw CommError(NPU_ERROR_INVALID_ARGUMENT,
                      "hccl: " + Describe(pending) +
                          " waits for this rank itself, which has not sent it: send before, or in the same batch");
    }
  }
  for (; sent < sends.size(); ++sent) {
    const Transfer& send = *sends[sent];
    incoming.early.push_back(Keep(send.element, send.data.address, send.data.extent()));
  }
}

const MessageSlot* Mailboxes::NextPosted(Incoming& incoming) {
  const Mailbox& box = page_.mailbox(incoming.peer, peers_.rank());
  const uint64_t taken = box.taken.load(std::memory_order_relaxed);
  if (box.posted.load(std::memory_order_acquire) <= taken) return nullptr;
  const MessageSlot& slot = box.slots[taken % Mailbox::kSlots];
  if (slot.number != taken + 1 || (slot.in_payload == 1 && slot.extent.bytes > kInlineBytes)) {
    throw CommError(NPU_ERROR_SYSTEM, "hccl: message number " + std::to_string(taken + 1) + " of " +
                                          peers_.NameOf(incoming.peer) + " is damaged in the control page");
  }
  return &slot;
}

const std::byte* Mailboxes::Locate(Incoming& incoming, const MessageSlot& slot) {
  if (slot.in_payload == 1) return slot.payload;
  try {
    return static_cast<const std::byte*>(incoming.imports.Address(0, slot.handle, slot.extent.bytes));
  } catch (const CommError& error) {
    const std::string gone = peers_.WhyUnreachable(incoming.peer);
    if (gone.empty()) throw;
    throw CommError(NPU_ERROR_SYSTEM, "EI0002: hccl: " + gone + " while this rank receives from it");
  }
}

void Mailboxes::MarkTaken(int peer) {
  Mailbox& box = page_.mailbox(peer, peers_.rank());
  box.taken.store(box.taken.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  page_.state(peer).mail.Ring();
}

Mailboxes::EarlyMessage Mailboxes::Keep(ElementType element, const void* data, const Extent& extent) const {
  EarlyMessage message{element, extent, nullptr};
  if (extent.bytes != 0) {
    message.data = std::make_unique_for_overwrite<std::byte[]>(extent.bytes);
    std::memcpy(message.data.get(), data, extent.bytes);
  }
  return message;
}

void Mailboxes::TakeIn(int peer) {
  Incoming& incoming = incoming_[static_cast<size_t>(peer)];
  const std::lock_guard lock(incoming.mutex);
  if (incoming.begun > incoming.finished) return;  // whoever waits for it receives it without this copy
  while (const MessageSlot* slot = NextPosted(incoming)) {
    const Extent extent = slot->extent;
    incoming.early.push_back(Keep(slot->element, extent.bytes != 0 ? Locate(incoming, *slot) : nullptr, extent));
    MarkTaken(peer);
  }
}

uint64_t Mailboxes::PeerProgress(const Transfer& transfer) const {
  return transfer.is_send ? page_.mailbox(peers_.rank(), transfer.peer).taken.load(std::memory_order_acquire)
                          : page_.mailbox(transfer.peer, peers_.rank()).posted.load(std::memory_order_acquire);
}

// ---- waiting --------------------------------------------------------------------------------------------------------

void Mailboxes::Wait(std::vector<Pending>& pending) {
  const Clock::time_point begin = Clock::now();
  Clock::time_point next_liveness_check{};
  WaitFor(
      page_.state(peers_.rank()).mail, [&] { return Progress(pending); },
      [&] {
        peers_.ThrowIfFailed();
        const Clock::time_point now = Clock::now();
        const bool sends =
            std::any_of(pending.begin(), pending.end(), [](const Pending& one) { return one.transfer->is_send; });
        for (int peer = 0; sends && peer < peers_.size(); ++peer) {
          const bool is_receiver = std::any_of(pending.begin(), pending.end(), [&](const Pending& one) {
            return one.transfer->is_send && one.transfer->peer == peer;
          });
          if (peer != peers_.rank() && (is_receiver || now - begin > kTakeInFromAll)) TakeIn(peer);
        }
        if (now < next_liveness_check) return;
        next_liveness_check = now + kCheckInterval / 2;
        for (const Pending& one : pending) {
          const std::string gone = peers_.WhyGone(one.transfer->peer);
          // It may have done its part just before it went, so that is read last.
          if (gone.empty() || PeerProgress(*one.transfer) >= one.number) continue;
          throw CommError(NPU_ERROR_SYSTEM,
                          "EI0002: hccl: " + gone + " while this rank waits for it in " + Describe(one));
        }
        if (peers_.limit().count() > 0 && now - begin > peers_.limit()) {
          throw CommError(NPU_ERROR_TIMEOUT, DescribeTimeout(pending));
        }
      });
}

// ---- texts ----------------------------------------------------------------------------------------------------------

void Mailboxes::RequireSame(const Pending& pending, ElementType element, const Extent& sent) const {
  const Transfer& receive = *pending.transfer;
  if (element == receive.element && Fits(sent, receive.data.extent())) return;
  throw CommError(NPU_ERROR_TASK_FAILED,
                  DescribeMessageMismatch(pending.number, peers_.NumberOf(receive.peer), sent, element,
                                          peers_.NumberOf(peers_.rank()), receive.data.extent(), receive.element));
}

std::string Mailboxes::Describe(const Pending& pending) const {
  const Transfer& transfer = *pending.transfer;
  return std::string(Verb(transfer)) + " number " + std::to_string(pending.number) +
         (transfer.is_send ? " to rank " : " from rank ") + std::to_string(peers_.NumberOf(transfer.peer)) + " (" +
         DescribeBytes(transfer.data.bytes, transfer.element) + ")";
}

std::string Mailboxes::DescribeTimeout(const std::vector<Pending>& pending) const {
  constexpr size_t kMostNamed = 4;
  std::string text = "EI0002: hccl: waited " + std::to_string(peers_.limit().count()) + " ms (HCCL_EXEC_TIMEOUT) for ";
  for (size_t i = 0; i < std::min(pending.size(), kMostNamed); ++i) {
    const Transfer& transfer = *pending[i].transfer;
    text += (i == 0 ? "" : ", and for ") + Describe(pending[i]) + ": " + peers_.NameOf(transfer.peer) + " has " +
            (transfer.is_send ? "received " : "sent ") + std::to_string(PeerProgress(transfer)) +
            (transfer.is_send ? " from" : " to") + " this rank, " + peers_.LastCallOf(transfer.peer);
  }
  if (pending.size() > kMostNamed) text += ", and " + std::to_string(pending.size() - kMostNamed) + " more";
  return text;
}

}  // namespace npu::distributed
