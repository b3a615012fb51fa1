// A sum over ranks whose numbers travel as int8 (comm_quant_scale_1 and _2 of mm + all_reduce).
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "mc2/fused_call.h"

namespace npu::distributed {

/// For each tile P of every rank: q = clip(rint(P / s1), -128, 127) goes to the rank that sums its row, sum = sum over
/// ranks of q * s1 in float32 and rank order, clip(rint(sum / s2), -128, 127) goes to all ranks, times s2.
///
/// s1 and s2 are expected to be the same on all ranks: who sums a row uses its own s1, who receives it its own s2.
/// All tiles are given first, so that the exchanges of one overlap the product of the next.
class Int8AllReduce {
 public:
  Int8AllReduce(FusedCall& call, const Communicator& communicator, const at::Tensor& s1, const at::Tensor& s2);

  /// Begins to sum `partial`, float32 [rows, n], into `result`, [rows, n] contiguous.
  void Add(const at::Tensor& partial, const at::Tensor& result);
  /// Queues the rest; the current stream then waits for the results.
  void Finish();

 private:
  struct Tile {
    at::Tensor result;
    at::Tensor quantised;  ///< int8 [rows, n]: the own terms, later the sums of all rows
    at::Tensor received;   ///< int8 [size, own rows, n]: all ranks' terms of the rows that this rank sums
    FusedCall::Step step;
  };

  int64_t ShareBegin(int64_t rank, int64_t rows) const { return rows * rank / size_; }
  at::Tensor Share(const at::Tensor& rows, int64_t rank) const;
  std::vector<Region> Shares(const at::Tensor& rows) const;

  FusedCall& call_;
  int rank_;
  int64_t size_;
  at::Tensor s1_;
  at::Tensor s2_;
  std::vector<Tile> tiles_;
};

}  // namespace npu::distributed
