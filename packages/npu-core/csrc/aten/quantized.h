#pragma once
#include <ATen/core/Tensor.h>

namespace npu::aten {

// A tensor over `storage` with the dtype of `like`, and its quantizer if it has one, on the CPU or npu; no sizes yet.
at::Tensor tensor_like(const at::Tensor& like, c10::Storage storage, c10::DeviceType device);

}  // namespace npu::aten
