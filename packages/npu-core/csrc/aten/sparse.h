#pragma once
#include <ATen/core/Tensor.h>

#include <functional>

namespace npu::aten {

inline bool is_sparse_layout(at::Layout layout) {
  return layout == at::kSparse || layout == at::kSparseCsr || layout == at::kSparseCsc || layout == at::kSparseBsr ||
         layout == at::kSparseBsc;
}

using MapPart = std::function<at::Tensor(const at::Tensor&)>;

// The sparse tensor with its parts (indices and values) replaced by map(part), on `device`.  No data is read.
at::Tensor map_sparse(const at::Tensor& t, c10::Device device, const MapPart& map);

// Gives `to` the sizes and the mapped parts of `from`, a sparse tensor of the same layout.
void assign_sparse(const at::Tensor& to, const at::Tensor& from, const MapPart& map);

}  // namespace npu::aten
