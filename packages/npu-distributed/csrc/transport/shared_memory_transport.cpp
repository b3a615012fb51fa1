#include "transport/shared_memory_transport.h"

#include <algorithm>
#include <cstring>

#include "transport/comm_error.h"

namespace npu::distributed {

using Clock = std::chrono::steady_clock;

SharedMemoryTransport::SharedMemoryTransport(Meeting meeting, int rank, DeviceMemory& memory,
                                             std::chrono::milliseconds limit)
    : rank_(rank),
      size_(static_cast<int>(meeting.ranks.size())),
      page_(std::move(meeting.page)),
      peers_(*page_, std::move(meeting.ranks), rank, limit),
      exports_(memory),
      imports_(memory, size_),
      mailboxes_(peers_, *page_, memory) {
  own_regions_.reserve(page_->region_capacity());
}

void SharedMemoryTransport::ThrowIfPeerGone(std::atomic<uint64_t> RankState::* progress) const {
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    RankState& state = page_->state(peer);
    // A peer that finished this call may leave or end while slower ranks still look at it, so progress is read last.
    const std::string reason = peers_.WhyGone(peer);
    if (reason.empty() || (state.*progress).load(std::memory_order_acquire) >= call_) continue;
    throw CommError(NPU_ERROR_SYSTEM, "EI0002: hccl: " + reason + " while this rank waits for it in " +
                                          Describe(CallOf(rank_)) + " number " + std::to_string(call_));
  }
}

std::string SharedMemoryTransport::DescribeMissing(const char* purpose, const std::string& how_long,
                                                   std::atomic<uint64_t> RankState::* progress) const {
  std::string missing;
  std::string details;
  for (int peer = 0; peer < size_; ++peer) {
    if ((page_->state(peer).*progress).load(std::memory_order_acquire) >= call_) continue;
    missing += (missing.empty() ? "" : ", ") + std::to_string(peers_.NumberOf(peer));
    details += "; " + peers_.NameOf(peer) + ": " + peers_.LastCallOf(peer);
  }
  return "EI0002: hccl: " + std::string(purpose) + " in " + Describe(CallOf(rank_)) + " number " +
         std::to_string(call_) + ": waited " + how_long + " for rank(s) " + missing + details;
}

template <class Ready>
void SharedMemoryTransport::WaitForPeers(const char* purpose, std::atomic<uint64_t> RankState::* progress,
                                         Ready ready) {
  const Clock::time_point begin = Clock::now();
  try {
    WaitFor(page_->bell(), ready, [&] {
      const Clock::time_point now = Clock::now();
      try {
        peers_.ThrowIfFailed();
      } catch (const CommError& error) {
        if (error.status() != NPU_ERROR_STOPPED) throw;
        // Ended from outside, as by a watchdog, who cannot know what this rank was waiting for.
        const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(now - begin);
        const std::string how_long = std::to_string(waited.count()) + " ms";
        throw CommError(NPU_ERROR_STOPPED, error.what() + ("; " + DescribeMissing(purpose, how_long, progress)));
      }
      // Rings of other calls wake this waiter too; reading /proc each time would be wasteful.
      if (now < next_liveness_check_) return;
      next_liveness_check_ = now + kCheckInterval / 2;
      ThrowIfPeerGone(progress);
      if (peers_.limit().count() > 0 && now - begin > peers_.limit()) {
        const std::string how_long = std::to_string(peers_.limit().count()) + " ms (HCCL_EXEC_TIMEOUT)";
        throw CommError(NPU_ERROR_TIMEOUT, DescribeMissing(purpose, how_long, progress));
      }
    });
  } catch (const CommError& error) {
    if (error.status() == NPU_ERROR_STOPPED) throw;  // the group has failed already
    peers_.Fail(error.status(), error.what());
  }
}

void SharedMemoryTransport::Meet(const Call& call, std::span<const std::byte> payload,
                                 std::span<const Region> regions) {
  peers_.ThrowIfFailed();
  if (payload.size() > kInlineBytes || regions.size() > page_->region_capacity()) {
    throw CommError(NPU_ERROR_INVALID_ARGUMENT, "hccl: a call announces at most " + std::to_string(kInlineBytes) +
                                                    " bytes and " + std::to_string(page_->region_capacity()) +
                                                    " regions, but this one " + std::to_string(payload.size()) +
                                                    " and " + std::to_string(regions.size()));
  }
  ++call_;
  AnnouncementHeader& header = page_->header(rank_, call_);
  header.call = call;
  header.payload_bytes = static_cast<uint32_t>(payload.size());
  header.region_count = static_cast<uint32_t>(regions.size());
  if (!payload.empty()) std::memcpy(page_->payload(rank_, call_), payload.data(), payload.size());
  own_regions_.assign(regions.begin(), regions.end());
  Extent* extents = page_->region_extents(rank_, call_);
  npu_memory_handle* handles = page_->region_handles(rank_, call_);
  try {
    for (size_t i = 0; i < regions.size(); ++i) {
      extents[i] = regions[i].extent();
      if ((payload.empty() || share_beside_payload_) && regions[i].bytes != 0)
        handles[i] = exports_.Handle(regions[i].address, regions[i].bytes);
    }
  } catch (const CommError& error) {
    peers_.Fail(error.status(), error.what());
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
  const size_t bytes = page_->header(rank, call_).payload_bytes;
  return {page_->payload(rank, call_), std::min(bytes, kInlineBytes)};
}

Extent SharedMemoryTransport::ExtentOf(int rank, size_t index) const {
  const bool announced = index < page_->header(rank, call_).region_count && index < page_->region_capacity();
  return announced ? page_->region_extents(rank, call_)[index] : Extent{};
}

std::span<std::byte> SharedMemoryTransport::RegionOf(int rank, size_t index) {
  const size_t bytes = ExtentOf(rank, index).bytes;
  if (bytes == 0) return {};
  if (rank == rank_) return {static_cast<std::byte*>(own_regions_[index].address), bytes};
  if (page_->header(rank, call_).payload_bytes != 0 && !share_beside_payload_) return {};
  try {
    const npu_memory_handle& handle = page_->region_handles(rank, call_)[index];
    return {static_cast<std::byte*>(imports_.Address(rank, handle, bytes)), bytes};
  } catch (const CommError& error) {
    const std::string gone = peers_.WhyUnreachable(rank);
    if (gone.empty()) peers_.Fail(error.status(), error.what());
    peers_.Fail(NPU_ERROR_SYSTEM, "EI0002: hccl: " + gone + " while this rank maps its memory in " +
                                      Describe(CallOf(rank_)) + " number " + std::to_string(call_));
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
  page_->RingAll();
}

}  // namespace npu::distributed
