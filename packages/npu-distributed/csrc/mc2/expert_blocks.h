// Rows grouped by the rank and the local expert they come from or go to.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "transport/transport.h"

namespace npu::distributed {

/// Numbers of rows by peer and local expert, rank-major: counts[peer * experts + expert].
struct ExpertCounts {
  std::vector<int64_t> counts;
  int64_t experts;

  int64_t ranks() const { return static_cast<int64_t>(counts.size()) / experts; }
  int64_t Of(int64_t rank, int64_t expert) const { return counts[static_cast<size_t>(rank * experts + expert)]; }
  int64_t Total() const;
};

/// Where the block of each (peer, local expert) lies in a matrix that has one block below the other.
class ExpertBlocks {
 public:
  /// Blocks by rank, then by expert.
  static ExpertBlocks RankMajor(const ExpertCounts& counts);
  /// Blocks by expert, then by rank.
  static ExpertBlocks ExpertMajor(const ExpertCounts& counts);

  /// The rows of one expert in an expert-major `matrix`.
  at::Tensor RowsOf(int64_t expert, const at::Tensor& matrix) const;
  /// The blocks of one expert in the contiguous `matrix`, by rank.
  std::vector<Region> RegionsOf(int64_t expert, const at::Tensor& matrix) const;

 private:
  explicit ExpertBlocks(const ExpertCounts& counts) : counts_(counts), begins_(counts.counts.size()) {}
  int64_t& Begin(int64_t rank, int64_t expert) { return begins_[static_cast<size_t>(rank * counts_.experts + expert)]; }
  int64_t Begin(int64_t rank, int64_t expert) const {
    return begins_[static_cast<size_t>(rank * counts_.experts + expert)];
  }

  ExpertCounts counts_;
  std::vector<int64_t> begins_;
};

}  // namespace npu::distributed
