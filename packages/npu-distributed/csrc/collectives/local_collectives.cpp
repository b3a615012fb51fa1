#include "collectives/local_collectives.h"

#include "collectives/algorithms.h"

namespace npu::distributed {

LocalCollectives::LocalCollectives(Meeting meeting, int rank, DeviceMemory& memory, std::chrono::milliseconds limit)
    : transport_(std::move(meeting), rank, memory, limit) {}

void LocalCollectives::AllReduce(ElementType type, ReduceKind kind, double factor, Region data) {
  distributed::AllReduce(transport_, type, kind, factor, data);
}

void LocalCollectives::Broadcast(ElementType type, int root, Region data) {
  distributed::Broadcast(transport_, type, root, data);
}

void LocalCollectives::AllGather(ElementType type, Region input, std::span<const Region> outputs) {
  distributed::AllGather(transport_, type, input, outputs);
}

void LocalCollectives::Reduce(ElementType type, ReduceKind kind, double factor, int root, Region data) {
  distributed::Reduce(transport_, type, kind, factor, root, data);
}

void LocalCollectives::ReduceScatter(ElementType type, ReduceKind kind, double factor, std::span<const Region> inputs,
                                     Region output) {
  distributed::ReduceScatter(transport_, type, kind, factor, inputs, output);
}

void LocalCollectives::AllToAll(ElementType type, std::span<const Region> inputs, std::span<const Region> outputs) {
  distributed::AllToAll(transport_, type, inputs, outputs);
}

void LocalCollectives::Scatter(ElementType type, int root, std::span<const Region> inputs, Region output) {
  distributed::Scatter(transport_, type, root, inputs, output);
}

void LocalCollectives::Gather(ElementType type, int root, Region input, std::span<const Region> outputs) {
  distributed::Gather(transport_, type, root, input, outputs);
}

void LocalCollectives::Barrier() { distributed::Barrier(transport_); }

void LocalCollectives::Agree(std::string_view operation) { distributed::Agree(transport_, operation); }

void LocalCollectives::Exchange(std::span<const Transfer> transfers) { transport_.mailboxes().Exchange(transfers); }

}  // namespace npu::distributed
