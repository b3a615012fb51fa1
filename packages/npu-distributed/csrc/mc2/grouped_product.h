// Products of groups of rows with a matrix per group.
#pragma once

#include <ATen/core/Tensor.h>

namespace npu::distributed {

/// out[rows of group g] = x[rows of group g] @ weight[g], where a group is a stretch of rows known on the host.
class GroupedProduct {
 public:
  /// `weight` [groups, k, n], or [groups, n, k] when `transposed`.
  GroupedProduct(const at::Tensor& weight, bool transposed) : weight_(transposed ? weight.transpose(1, 2) : weight) {}

  int64_t groups() const { return weight_.size(0); }
  int64_t rows() const { return weight_.size(1); }
  int64_t columns() const { return weight_.size(2); }

  /// Queues the product of group `group` on the current stream: x [rows, k], out [rows, n] of the type of x.
  void Into(at::Tensor out, const at::Tensor& x, int64_t group) const;

 private:
  at::Tensor weight_;
};

}  // namespace npu::distributed
