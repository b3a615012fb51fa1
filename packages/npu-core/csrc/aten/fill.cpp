// Filling tensors and other pointwise ops that torch does not describe as structured.
#include <ATen/ExpandUtils.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/NativeFunctions.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TypeProperties.h>
#include <torch/library.h>

#include "empty.h"
#include "kernel_arguments.h"
#include "launch_op.h"
#include "operator_plan.h"

namespace npu::aten {
namespace {

void run_fill(const at::Tensor& self, const at::Scalar& value) { mut(self).fill_(value); }
void run_fill_tensor(const at::Tensor& self, const at::Tensor& value) { mut(self).fill_(value); }

// Expanded tensors may be filled: every element gets the same value.
at::Tensor& fill_scalar(at::Tensor& self, const at::Scalar& value) {
  if (self.numel() != 0) launch_op<&run_fill>("aten::fill_", self, value);
  return self;
}

at::Tensor& fill_tensor(at::Tensor& self, const at::Tensor& value) {
  TORCH_CHECK(value.dim() == 0, "fill_ only supports 0-dimension value tensor but got tensor with ", value.dim(),
              " dimensions.");
  if (!is_npu(self) || (is_npu(value) && value.device() != self.device())) return self.fill_(value.item());
  if (self.numel() != 0) launch_op<&run_fill_tensor>("aten::fill_", self, value);
  return self;
}

at::Tensor& zero_(at::Tensor& self) {
  if (self.numel() != 0) launch_op<&run_zero>("aten::zero_", self);
  return self;
}

// relu: max(x, 0), NaN kept.
void run_relu(const at::Tensor& out, const at::Tensor& self) { at::clamp_min_out(mut(out), self, 0); }

at::Tensor relu(const at::Tensor& self) {
  TORCH_CHECK(self.scalar_type() != at::kBool, "Boolean inputs not supported for relu");
  auto out = at::empty_like(self);
  launch_op<&run_relu>("aten::relu", out, self);
  return out;
}

at::Tensor& relu_(at::Tensor& self) {
  TORCH_CHECK(self.scalar_type() != at::kBool, "Boolean inputs not supported for relu");
  at::assert_no_internal_overlap(self);
  launch_op<&run_relu>("aten::relu_", self, self);
  return self;
}

void run_masked_fill(const at::Tensor& self, const at::Tensor& mask, const at::Scalar& value) {
  mut(self).masked_fill_(mask, value);
}
void run_masked_fill_tensor(const at::Tensor& self, const at::Tensor& mask, const at::Tensor& value) {
  mut(self).masked_fill_(mask, value);
}

void check_mask(const at::Tensor& self, const at::Tensor& mask) {
  TORCH_CHECK(mask.scalar_type() == at::kBool, "masked_fill_ only supports boolean masks, but got mask with dtype ",
              mask.scalar_type());
  at::assert_no_partial_overlap(self, mask);
  TORCH_CHECK(at::is_expandable_to(mask.sizes(), self.sizes()), "masked_fill_: mask of shape ", mask.sizes(),
              " does not broadcast to self of shape ", self.sizes());
}

at::Tensor& masked_fill_scalar(at::Tensor& self, const at::Tensor& mask, const at::Scalar& value) {
  check_mask(self, mask);
  if (self.numel() != 0) launch_op<&run_masked_fill>("aten::masked_fill_", self, mask, value);
  return self;
}

at::Tensor& masked_fill_tensor(at::Tensor& self, const at::Tensor& mask, const at::Tensor& value) {
  TORCH_CHECK(value.dim() == 0, "masked_fill_ only supports a 0-dimensional value tensor, but got tensor with ",
              value.dim(), " dimension(s).");
  check_mask(self, mask);
  if (self.numel() != 0) launch_op<&run_masked_fill_tensor>("aten::masked_fill_", self, mask, value);
  return self;
}

void run_where(const at::Tensor& out, const at::Tensor& condition, const at::Tensor& a, const at::Tensor& b) {
  at::where_out(mut(out), condition, a, b);
}

at::Tensor where(const at::Tensor& condition, const at::Tensor& self, const at::Tensor& other) {
  TORCH_CHECK(condition.scalar_type() == at::kBool || condition.scalar_type() == at::kByte,
              "where expected condition to be a boolean tensor, but got a tensor with dtype ", condition.scalar_type());
  const auto dtype = at::native::result_type(self, other);
  const auto sizes = at::infer_size(at::infer_size(condition.sizes(), self.sizes()), other.sizes());
  const auto shape = pointwise_shape(sizes, dtype, {condition, self, other});
  const at::Tensor& like = is_npu(self) ? self : is_npu(condition) ? condition : other;
  auto out = empty_strided_npu(shape.sizes, shape.strides, dtype, like.device().index());
  if (out.numel() != 0) {
    // Converted on the engine side of the stream, in order.
    auto cast = [&](const at::Tensor& t) { return t.scalar_type() == dtype ? t : t.to(dtype); };
    launch_op<&run_where>("aten::where", out, condition, cast(self), cast(other));
  }
  return out;
}

void run_mse_loss_backward(const at::Tensor& out, const at::Tensor& grad, const at::Tensor& self,
                           const at::Tensor& target, std::int64_t reduction) {
  at::mse_loss_backward_out(mut(out), grad, self, target, reduction);
}

at::Tensor mse_loss_backward(const at::Tensor& grad, const at::Tensor& self, const at::Tensor& target,
                             std::int64_t reduction) {
  auto out = empty_npu(at::infer_size(self.sizes(), target.sizes()), at::native::result_type(self, target),
                       self.device().index());
  launch_op<&run_mse_loss_backward>("aten::mse_loss_backward", out, grad, self, target, reduction);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("fill_.Scalar", TORCH_FN(fill_scalar));
  m.impl("fill_.Tensor", TORCH_FN(fill_tensor));
  m.impl("zero_", TORCH_FN(zero_));
  m.impl("relu", TORCH_FN(relu));
  m.impl("relu_", TORCH_FN(relu_));
  m.impl("masked_fill_.Scalar", TORCH_FN(masked_fill_scalar));
  m.impl("masked_fill_.Tensor", TORCH_FN(masked_fill_tensor));
  m.impl("where.self", TORCH_FN(where));
  m.impl("mse_loss_backward", TORCH_FN(mse_loss_backward));
}

}  // namespace npu::aten
