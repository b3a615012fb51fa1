#include "transport/peers.h"

#include <thread>

#include "transport/comm_error.h"

namespace npu::distributed {

Peers::Peers(ControlPage& page, std::vector<ProcessIdentity> ranks, int rank, std::chrono::milliseconds limit)
    : page_(page), ranks_(std::move(ranks)), rank_(rank), limit_(limit) {}

std::string Peers::NameOf(int peer) const {
  return "rank " + std::to_string(NumberOf(peer)) + " (process " +
         std::to_string(ranks_[static_cast<size_t>(peer)].pid) + ")";
}

bool Peers::HasLeft(int peer) const { return page_.state(peer).left.load(std::memory_order_acquire) != 0; }

std::string Peers::WhyGone(int peer) const {
  if (HasLeft(peer)) return NameOf(peer) + " has destroyed the process group";
  return IsAlive(ranks_[static_cast<size_t>(peer)]) ? "" : NameOf(peer) + " ended";
}

std::string Peers::WhyUnreachable(int peer) const {
  constexpr int kAttempts = 200;
  std::string reason = WhyGone(peer);
  for (int attempt = 0; reason.empty() && attempt < kAttempts; ++attempt) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    reason = WhyGone(peer);
  }
  return reason;
}

std::string Peers::LastCallOf(int peer) const {
  const uint64_t number = page_.state(peer).arrived.load(std::memory_order_acquire);
  if (number == 0) return "it has not begun any collective of this group";
  return "its last collective was number " + std::to_string(number) + ", " + Describe(page_.header(peer, number).call);
}

void Peers::ThrowIfFailed() const {
  int rank = 0;
  npu_status status = NPU_OK;
  const char* text = page_.failure(&rank, &status);
  if (text == nullptr) return;
  throw CommError(status, rank == rank_
                              ? std::string(text)
                              : std::string(text) + " (reported by rank " + std::to_string(NumberOf(rank)) + ")");
}

void Peers::Fail(npu_status status, const std::string& text) const {
  page_.SetFailure(rank_, status, text.c_str());
  ThrowIfFailed();
  throw CommError(status, text);  // another rank is writing its failure this moment
}

}  // namespace npu::distributed
