#pragma once
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>

#include <optional>

#include "runtime/device.h"

namespace npu::aten {

inline constexpr c10::DeviceType kNpu = c10::DeviceType::PrivateUse1;

inline bool is_npu(const at::TensorBase& t) { return t.defined() && t.device().type() == kNpu; }

// Uninitialised tensors on visible device `device` (< 0: current).
at::Tensor empty_npu(at::IntArrayRef sizes, at::ScalarType dtype, int device,
                     std::optional<at::MemoryFormat> format = std::nullopt);
at::Tensor empty_strided_npu(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype, int device);

// Sizes and dtype of `like`, contiguous.
inline at::Tensor empty_npu_like(const at::Tensor& like) {
  return empty_npu(like.sizes(), like.scalar_type(), like.device().index());
}

// Grows the storage to hold `bytes`, keeping its content; never shrinks it.
void resize_storage(c10::StorageImpl* storage, size_t bytes, int device);

}  // namespace npu::aten
