#include "mc2/int8_all_reduce.h"

#include <ATen/ATen.h>

#include <utility>

#include "process_group/tensor_checks.h"

namespace npu::distributed {
namespace {

at::Tensor Quantise(const at::Tensor& values, const at::Tensor& scale) {
  return (values / scale).round_().clamp_(-128, 127).to(at::kChar);
}

}  // namespace

Int8AllReduce::Int8AllReduce(FusedCall& call, const Communicator& communicator, const at::Tensor& s1,
                             const at::Tensor& s2)
    : call_(call),
      rank_(communicator.rank()),
      size_(communicator.size()),
      s1_(s1.reshape({-1}).to(at::kFloat)),
      s2_(s2.reshape({-1}).to(at::kFloat)) {}

at::Tensor Int8AllReduce::Share(const at::Tensor& rows, int64_t rank) const {
  const int64_t begin = ShareBegin(rank, rows.size(0));
  return rows.narrow(0, begin, ShareBegin(rank + 1, rows.size(0)) - begin);
}

std::vector<Region> Int8AllReduce::Shares(const at::Tensor& rows) const {
  std::vector<Region> shares;
  for (int64_t rank = 0; rank < size_; ++rank) shares.push_back(RegionOf(Share(rows, rank)));
  return shares;
}

void Int8AllReduce::Add(const at::Tensor& partial, const at::Tensor& result) {
  Tile tile;
  tile.result = result;
  tile.quantised = Quantise(partial, s1_);
  const at::Tensor own = Share(tile.quantised, rank_);
  tile.received = at::empty({size_, own.size(0), own.size(1)}, own.options());
  std::vector<Region> outputs;
  for (int64_t rank = 0; rank < size_; ++rank) outputs.push_back(RegionOf(tile.received.select(0, rank)));
  tile.step = call_.Communicate({tile.quantised, tile.received},
                                [inputs = Shares(tile.quantised), outputs = std::move(outputs)](Collectives& ranks) {
                                  ranks.AllToAll(ElementType::kInt8, inputs, outputs);
                                });
  tiles_.push_back(std::move(tile));
}

void Int8AllReduce::Finish() {
  for (Tile& tile : tiles_) {
    call_.WaitFor(tile.step);
    at::Tensor sum = tile.received.select(0, 0) * s1_;
    for (int64_t rank = 1; rank < size_; ++rank) sum.add_(tile.received.select(0, rank) * s1_);
    const at::Tensor own = Quantise(sum, s2_);
    tile.step = call_.Communicate({own, tile.quantised},
                                  [input = RegionOf(own), outputs = Shares(tile.quantised)](Collectives& ranks) {
                                    ranks.AllGather(ElementType::kInt8, input, outputs);
                                  });
  }
  for (const Tile& tile : tiles_) {
    call_.WaitFor(tile.step);
    tile.result.copy_(tile.quantised * s2_);
  }
  tiles_.clear();
}

}  // namespace npu::distributed
