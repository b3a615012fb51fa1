#include "mc2/expert_blocks.h"

#include <ATen/ATen.h>

#include <numeric>

#include "process_group/tensor_checks.h"

namespace npu::distributed {

int64_t ExpertCounts::Total() const { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

ExpertBlocks ExpertBlocks::RankMajor(const ExpertCounts& counts) {
  ExpertBlocks blocks(counts);
  std::exclusive_scan(counts.counts.begin(), counts.counts.end(), blocks.begins_.begin(), int64_t{0});
  return blocks;
}

ExpertBlocks ExpertBlocks::ExpertMajor(const ExpertCounts& counts) {
  ExpertBlocks blocks(counts);
  int64_t begin = 0;
  for (int64_t expert = 0; expert < counts.experts; ++expert) {
    for (int64_t rank = 0; rank < counts.ranks(); ++rank) {
      blocks.Begin(rank, expert) = begin;
      begin += counts.Of(rank, expert);
    }
  }
  return blocks;
}

at::Tensor ExpertBlocks::RowsOf(int64_t expert, const at::Tensor& matrix) const {
  int64_t rows = 0;
  for (int64_t rank = 0; rank < counts_.ranks(); ++rank) rows += counts_.Of(rank, expert);
  return matrix.narrow(0, Begin(0, expert), rows);
}

std::vector<Region> ExpertBlocks::RegionsOf(int64_t expert, const at::Tensor& matrix) const {
  std::vector<Region> regions;
  for (int64_t rank = 0; rank < counts_.ranks(); ++rank) {
    regions.push_back(distributed::RegionOf(matrix.narrow(0, Begin(rank, expert), counts_.Of(rank, expert))));
  }
  return regions;
}

}  // namespace npu::distributed
