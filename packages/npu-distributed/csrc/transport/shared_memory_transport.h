// Transport between processes of one machine: meets in a control page, reads and writes exported device memory.
#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <vector>

#include "transport/control_page.h"
#include "transport/device_memory.h"
#include "transport/mailboxes.h"
#include "transport/peers.h"
#include "transport/rendezvous.h"
#include "transport/transport.h"

namespace npu::distributed {

class SharedMemoryTransport final : public Transport {
 public:
  /// `limit` bounds the wait for peers inside a call (zero: for ever).  `memory` must outlive the transport.
  SharedMemoryTransport(Meeting meeting, int rank, DeviceMemory& memory, std::chrono::milliseconds limit);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  size_t inline_capacity() const override { return kInlineBytes; }
  size_t region_capacity() const override { return page_->region_capacity(); }

  void Meet(const Call& call, std::span<const std::byte> payload, std::span<const Region> regions) override;
  uint64_t call_number() const override { return call_; }
  const Call& CallOf(int rank) const override;
  std::span<const std::byte> PayloadOf(int rank) const override;
  Extent ExtentOf(int rank, size_t index) const override;
  std::span<std::byte> RegionOf(int rank, size_t index) override;
  bool ClaimPiece(int owner, uint32_t pieces, uint32_t* piece) override;
  void Part() override;
  void Abort(const char* reason) noexcept override;
  void Leave() noexcept override;

  const std::vector<ProcessIdentity>& ranks() const { return peers_.ranks(); }
  /// From now on peers can address regions that are announced beside a payload, too.
  void ShareRegionsBesidePayloads() { share_beside_payload_ = true; }
  const Peers& peers() const { return peers_; }
  Mailboxes& mailboxes() { return mailboxes_; }

 private:
  template <class Ready>
  void WaitForPeers(const char* purpose, std::atomic<uint64_t> RankState::* progress, Ready ready);
  std::string DescribeMissing(const char* purpose, const std::string& how_long,
                              std::atomic<uint64_t> RankState::* progress) const;
  void ThrowIfPeerGone(std::atomic<uint64_t> RankState::* progress) const;

  const int rank_;
  const int size_;
  std::unique_ptr<ControlPage> page_;
  Peers peers_;
  ExportCache exports_;
  ImportCache imports_;
  Mailboxes mailboxes_;
  uint64_t call_ = 0;
  bool share_beside_payload_ = false;
  std::vector<Region> own_regions_;
  std::chrono::steady_clock::time_point next_liveness_check_{};
};

}  // namespace npu::distributed
