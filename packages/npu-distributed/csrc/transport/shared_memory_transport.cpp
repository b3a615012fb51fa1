#include "transport/shared_memory_transport.h"

#include <cstring>

#include "transport/comm_error.h"

namespace npu::distributed {

using Clock = std::chrono::steady_clock;

const char* Name(CallKind kind) {
  switch (kind) {
    case CallKind::kAllReduce:
      return "all_reduce";
    case CallKind::kBroadcast:
      return "broadcast";
    case CallKind::kReduce:
      return "reduce";
    case CallKind::kAllGather:
      return "all_gather";
    case CallKind::kReduceScatter:
      return "reduce_scatter";
    case CallKind::kAllToAll:
      return "all_to_all";
    case CallKind::kScatter:
      return "scatter";
    case CallKind::kGather:
      return "gather";
    case CallKind::kBarrier:
      return "barrier";
  }
  return "unknown";
}

SharedMemoryTransport::SharedMemoryTransport(Meeting meeting, int rank, DeviceMemory& memory,
                                             std::chrono::milliseconds limit)
    : rank_(rank),
      size_(static_cast<int>(meeting.ranks.size())),
      limit_(limit),
      ranks_(std::move(meeting.ranks)),
      page_(std::move(meeting.page)),
      memory_(memory),
      imports_(memory, size_) {
  own_regions_.reserve(page_->region_capacity());
}

void SharedMemoryTransport::Fail(npu_status status, const std::string& text) {
  page_->SetFailure(rank_, status, text.c_str());
  ThrowIfFailed();
  throw CommError(status, text);  // another rank is writing its failure this moment
}

void SharedMemoryTransport::ThrowIfFailed() const {
  int rank = 0;
  npu_status status = NPU_OK;
  const char* text = page_->failure(&rank, &status);
  if (text == nullptr) return;
  throw CommError(status, rank == rank_ ? std::string(text)
                                        : std::string(text) + " (reported by rank " + std::to_string(rank) + ")");
}

void SharedMemoryTransport::ThrowIfPeerGone(std::atomic<uint64_t> RankState::* progress) const {
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    RankState& state = page_->state(peer);
    // A peer that finished this call may leave or end while slower ranks still look at it, so progress is read last.
    const bool left = state.left.load(std::memory_order_acquire) != 0;
    const bool gone = left || !IsAlive(ranks_[static_cast<size_t>(peer)]);
    if (!gone || (state.*progress).load(std::memory_order_acquire) >= call_) continue;
    const std::string name =
        "rank " + std::to_string(peer) + " (process " + std::to_string(ranks_[static_cast<size_t>(peer)].pid) + ")";
    throw CommError(NPU_ERROR_SYSTEM,
                    left ? "EI0002: hccl: " + name + " has destroyed the process group while this rank waits for it"
                         : "EI0002: hccl: " + name + " ended while this rank waits for it in a collective");
  }
}

template <class Ready>
void SharedMemoryTransport::WaitForPeers(const char* purpose, std::atomic<uint64_t> RankState::* progress,
                                         Ready ready) {
  const Clock::time_point begin = Clock::now();
  try {
    WaitFor(page_->bell(), ready, [&] {
      ThrowIfFailed();
      const Clock::time_point now = Clock::now();
      // Rings of other calls wake this waiter too; reading /proc each time would be wasteful.
      if (now < next_liveness_check_) return;
      next_liveness_check_ = now + kCheckInterval / 2;
      ThrowIfPeerGone(progress);
      if (limit_.count() > 0 && now - begin > limit_) {
        std::string missing;
        for (int peer = 0; peer < size_; ++peer) {
          if ((page_->state(peer).*progress).load(std::memory_order_acquire) < call_) {
            missing += (missing.empty() ? "" : ", ") + std::to_string(peer);
          }
        }
        throw CommError(NPU_ERROR_TIMEOUT, "EI0002: hccl: " + std::string(purpose) + " in " +
                                               Name(page_->header(rank_, call_).call.kind) + " number " +
                                               std::to_string(call_) + ": waited " + std::to_string(limit_.count()) +
                                               " ms (HCCL_EXEC_TIMEOUT) for rank(s) " + missing);
      }
    });
  } catch (const CommError& error) {
    Fail(error.status(), error.what());
  }
}

void SharedMemoryTransport::Meet(const Call& call, std::span<const std::byte> payload,
                                 std::span<const Region> regions) {
  ThrowIfFailed();
  ++call_;
  AnnouncementHeader& header = page_->header(rank_, call_);
  header.call = call;
  header.payload_bytes = static_cast<uint32_t>(payload.size());
  header.region_count = static_cast<uint32_t>(regions.size());
  if (!payload.empty()) std::memcpy(page_->payload(rank_, call_), payload.data(), payload.size());
  own_regions_.assign(regions.begin(), regions.end());
  RegionSlot* slots = page_->regions(rank_, call_);
  try {
    for (size_t i = 0; i < regions.size(); ++i) {
      slots[i].bytes = regions[i].bytes;
      if (regions[i].bytes != 0) slots[i].handle = memory_.Export(regions[i].address, regions[i].bytes);
    }
  } catch (const CommError& error) {
    Fail(error.status(), error.what());
  }
  RankState& state = page_->state(rank_);
  // Claims of call n+2 start from zero.  The last user of that counter was call n-2, which everybody has finished:
  // this rank has finished n-1, and so everybody had come to n-1.
  state.claimed[(call_ + 2) % 4].store(0, std::memory_order_relaxed);
  state.arrived.store(call_, std::memory_order_release);
  page_->bell().Ring();
  WaitForPeers("meeting", &RankState::arrived, [&] {
    for (int peer = 0; peer < size_; ++peer) {
      if (page_->state(peer).arrived.load(std::memory_order_acquire) < call_) return false;
    }
    return true;
  });
}

const Call& SharedMemoryTransport::CallOf(int rank) const { return page_->header(rank, call_).call; }

std::span<const std::byte> SharedMemoryTransport::PayloadOf(int rank) const {
  return {page_->payload(rank, call_), page_->header(rank, call_).payload_bytes};
}

std::span<std::byte> SharedMemoryTransport::RegionOf(int rank, size_t index) {
  if (rank == rank_) {
    if (index >= own_regions_.size()) return {};
    return {static_cast<std::byte*>(own_regions_[index].address), own_regions_[index].bytes};
  }
  if (index >= page_->header(rank, call_).region_count) return {};
  const RegionSlot& slot = page_->regions(rank, call_)[index];
  if (slot.bytes == 0) return {};
  try {
    return {static_cast<std::byte*>(imports_.Address(rank, slot.handle, slot.bytes)), slot.bytes};
  } catch (const CommError& error) {
    Fail(error.status(), error.what());
  }
}

bool SharedMemoryTransport::ClaimPiece(int owner, uint32_t pieces, uint32_t* piece) {
  std::atomic<uint32_t>& claimed = page_->state(owner).claimed[call_ % 4];
  if (claimed.load(std::memory_order_relaxed) >= pieces) return false;
  *piece = claimed.fetch_add(1, std::memory_order_relaxed);
  return *piece < pieces;
}

void SharedMemoryTransport::Part() {
  page_->state(rank_).parted.store(call_, std::memory_order_release);
  page_->bell().Ring();
  WaitForPeers("parting", &RankState::parted, [&] {
    for (int peer = 0; peer < size_; ++peer) {
      if (page_->state(peer).parted.load(std::memory_order_acquire) < call_) return false;
    }
    return true;
  });
}

void SharedMemoryTransport::Abort(const char* reason) noexcept { page_->SetFailure(rank_, NPU_ERROR_STOPPED, reason); }

void SharedMemoryTransport::Leave() noexcept {
  page_->state(rank_).left.store(1, std::memory_order_release);
  page_->bell().Ring();
}

}  // namespace npu::distributed
