// Quantised tensors on npu: torch's own class over device memory.  Operators run on the CPU through the fallback; the
// quantizer (scales and zero points) lives on the host, as with torch's CPU tensors.
#include "quantized.h"

#include <ATen/ops/q_per_channel_axis_native.h>
#include <ATen/ops/q_scale_native.h>
#include <ATen/ops/q_zero_point_native.h>
#include <ATen/ops/qscheme_native.h>
#include <ATen/ops/quantize_per_tensor.h>
#include <ATen/ops/set_native.h>
#include <ATen/quantized/QTensorImpl.h>
#include <ATen/quantized/Quantizer.h>
#include <torch/library.h>

#include "cpu_kernels.h"
#include "empty.h"
#include "fallback.h"

namespace npu::aten {
namespace {

// The stored integers as a plain tensor over the same memory.
at::Tensor stored_integers(const at::Tensor& t) {
  const bool npu = t.device().type() == kNpu;
  auto plain = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(t.storage()), c10::DispatchKeySet(npu ? c10::DispatchKey::PrivateUse1 : c10::DispatchKey::CPU),
      c10::scalarTypeToTypeMeta(c10::toUnderlying(t.scalar_type())));
  plain.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return plain;
}

at::Tensor& copy_quantized(at::Tensor& self, const at::Tensor& src, bool non_blocking) {
  TORCH_CHECK(self.is_quantized(), "copy_: a quantized tensor cannot be copied into one of dtype ", self.scalar_type(),
              " on npu; use dequantize()");
  if (!src.is_quantized())
    return self.copy_(
        at::quantize_per_tensor(src.to(self.device()), self.q_scale(), self.q_zero_point(), self.scalar_type()));
  TORCH_CHECK(self.scalar_type() == src.scalar_type() && self.sizes() == src.sizes(),
              "copy_: quantized tensors must agree in dtype and shape, but got ", self.scalar_type(), " ", self.sizes(),
              " and ", src.scalar_type(), " ", src.sizes());
  stored_integers(self).copy_(stored_integers(src), non_blocking);
  at::set_quantizer_(self, at::get_qtensorimpl(src)->quantizer());
  return self;
}

}  // namespace

at::Tensor tensor_like(const at::Tensor& like, c10::Storage storage, c10::DeviceType device) {
  const bool npu = device == kNpu;
  if (like.is_quantized()) {
    const c10::DispatchKeySet keys(npu ? c10::DispatchKey::QuantizedPrivateUse1 : c10::DispatchKey::QuantizedCPU);
    return at::detail::make_tensor<at::QTensorImpl>(std::move(storage), keys, like.dtype(),
                                                    at::get_qtensorimpl(like)->quantizer());
  }
  const c10::DispatchKeySet keys(npu ? c10::DispatchKey::PrivateUse1 : c10::DispatchKey::CPU);
  return at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, like.dtype());
}

TORCH_LIBRARY_IMPL(_, QuantizedPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&boxed_fallback>());
}

TORCH_LIBRARY_IMPL(aten, QuantizedPrivateUse1, m) {
  use_cpu_kernels(
      m, c10::DispatchKey::QuantizedCPU,
      {"copy_", "set_.source_Storage_storage_offset", "qscheme", "q_scale", "q_zero_point", "q_per_channel_axis"});
  m.impl("copy_", TORCH_FN(copy_quantized));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(at::native::set_storage_quantized_));
  m.impl("qscheme", TORCH_FN(at::native::qscheme_quant));
  m.impl("q_scale", TORCH_FN(at::native::q_scale_quant));
  m.impl("q_zero_point", TORCH_FN(at::native::q_zero_point_quant));
  m.impl("q_per_channel_axis", TORCH_FN(at::native::q_per_channel_axis));
}

}  // namespace npu::aten
