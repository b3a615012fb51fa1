// Collectives whose ranks meet at the first call instead of before it.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "collectives/connect.h"

namespace npu::distributed {

/// Point-to-point links are made this way: the thread that queues a send must not wait for the receiver, or a ring of
/// ranks that all send first would never get to its receives.
class DeferredCollectives final : public Collectives {
 public:
  /// `memory` must outlive this.
  DeferredCollectives(const ConnectSettings& settings, KeyValueStore store, DeviceMemory& memory,
                      LinkFactory make_link);

  int rank() const override { return settings_.meeting.rank; }
  int size() const override { return settings_.meeting.size; }
  /// Zero before the first call.
  uint64_t identity() const override;

  void AllReduce(ElementType type, ReduceKind kind, double factor, Region data) override;
  void Broadcast(ElementType type, int root, Region data) override;
  void AllGather(ElementType type, Region input, std::span<const Region> outputs) override;
  void Reduce(ElementType type, ReduceKind kind, double factor, int root, Region data) override;
  void ReduceScatter(ElementType type, ReduceKind kind, double factor, std::span<const Region> inputs,
                     Region output) override;
  void AllToAll(ElementType type, std::span<const Region> inputs, std::span<const Region> outputs) override;
  void Scatter(ElementType type, int root, std::span<const Region> inputs, Region output) override;
  void Gather(ElementType type, int root, Region input, std::span<const Region> outputs) override;
  void Barrier() override;
  void Agree(std::string_view operation) override;
  uint64_t call_number() const override;
  void Exchange(std::span<const Transfer> transfers) override;
  void Abort(const char* reason) noexcept override;
  void Leave() noexcept override;

 private:
  Collectives& Connected();
  void ThrowIfAborted() const;

  ConnectSettings settings_;
  KeyValueStore store_;
  DeviceMemory& memory_;
  const LinkFactory make_link_;
  mutable std::mutex mutex_;  // guards what follows; not held while the ranks meet
  std::unique_ptr<Collectives> connected_;
  std::string abort_reason_;
};

}  // namespace npu::distributed
