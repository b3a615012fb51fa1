#pragma once
// Small things that hand-written kernels share.
#include <ATen/core/Tensor.h>

#include <optional>

namespace npu::aten {

using OptTensor = std::optional<at::Tensor>;

inline bool has(const OptTensor& t) { return t.has_value() && t->defined(); }

// Kernels get their tensors by const reference, results among them.
inline at::Tensor& mut(const at::Tensor& t) { return const_cast<at::Tensor&>(t); }

inline void run_zero(const at::Tensor& self) { mut(self).zero_(); }

}  // namespace npu::aten
