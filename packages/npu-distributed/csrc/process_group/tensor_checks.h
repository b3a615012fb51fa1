// From tensors to regions: what a collective accepts, with the texts users know.
#pragma once

#include <ATen/ATen.h>

#include <torch/csrc/distributed/c10d/Types.hpp>
#include <vector>

#include "collectives/element_type.h"
#include "transport/transport.h"

namespace npu::distributed {

/// Throws unless the tensor is dense, on an npu device, contiguous and of a type that can travel.
void CheckTensor(const at::Tensor& tensor);
/// The same for a list; also that it is not empty and shares one type and device with `like`.
void CheckTensorList(const std::vector<at::Tensor>& tensors, const at::Tensor& like);

/// Throws unless every tensor is on `device`, which all tensors of a group share.
void CheckDevice(const std::vector<at::Tensor>& tensors, int device);
/// Throws unless bytes of `from` may be taken for bytes of `to`: both are of this rank, of which no other rank can tell
/// before it is queued.
void CheckSameLayout(const char* op, const Region& from, const Region& to);

ElementType ElementTypeOf(const at::Tensor& tensor);
Region RegionOf(const at::Tensor& tensor);
std::vector<Region> RegionsOf(const std::vector<at::Tensor>& tensors);

/// `parts` equal stretches of `tensor`.
std::vector<Region> EqualParts(const at::Tensor& tensor, int parts);
/// `size` stretches of `tensor`: the rows that `splits` says, equal ones when it is empty.
std::vector<Region> SplitParts(const at::Tensor& tensor, const std::vector<int64_t>& splits, int size,
                               const char* what);
/// Throws unless rank `rank` sends itself as much as it receives from itself, in the same layout.
void CheckOwnShare(const char* op, int rank, const at::Tensor& like, const std::vector<Region>& inputs,
                   const std::vector<Region>& outputs);

/// A c10d reduction, checked against an element type.
struct Reduction {
  ReduceKind kind = ReduceKind::kSum;
  double constant = 1.0;          ///< factor of PREMUL_SUM
  const void* address = nullptr;  ///< or where the factor will be when the collective runs
  ElementType factor_type = ElementType::kFloat32;
  at::Tensor factor;  ///< keeps `address` valid until the launch has recorded its stream

  /// The factor; call it in stream order.
  double Factor() const;
};
Reduction ReductionOf(const c10d::ReduceOp& op, const at::Tensor& tensor);
/// For the reduce_scatter family, which takes fewer types.
Reduction ScatteredReductionOf(const c10d::ReduceOp& op, const at::Tensor& tensor);

}  // namespace npu::distributed
