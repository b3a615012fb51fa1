// Collectives of ranks that share a machine: algorithms over shared memory.
#pragma once

#include <memory>

#include "collectives/collectives.h"
#include "transport/shared_memory_transport.h"

namespace npu::distributed {

class LocalCollectives final : public Collectives {
 public:
  LocalCollectives(Meeting meeting, int rank, DeviceMemory& memory, std::chrono::milliseconds limit);

  int rank() const override { return transport_.rank(); }
  int size() const override { return transport_.size(); }
  uint64_t identity() const override { return transport_.ranks().front().nonce; }

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
  uint64_t call_number() const override { return transport_.call_number(); }
  void Exchange(std::span<const Transfer> transfers) override;
  void Abort(const char* reason) noexcept override { transport_.Abort(reason); }
  void Leave() noexcept override { transport_.Leave(); }

 private:
  SharedMemoryTransport transport_;
};

}  // namespace npu::distributed
