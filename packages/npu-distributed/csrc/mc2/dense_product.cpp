#include "mc2/dense_product.h"

#include <ATen/ATen.h>

#include <utility>

#include "mc2/wide_product.h"

namespace npu::distributed {

DenseProduct::DenseProduct(at::ScalarType result_type, at::ScalarType x_type, const at::Tensor& weight, Bias bias,
                           at::Tensor column_scale)
    : result_type_(result_type),
      x_type_(x_type),
      is_wide_(result_type == at::kFloat && x_type == at::kBFloat16 && weight.scalar_type() == at::kBFloat16 &&
               HasWideProduct(weight.size(0))),
      weight_(x_type == at::kChar || is_wide_ ? weight : weight.to(result_type)),
      bias_(std::move(bias)),
      column_scale_(std::move(column_scale)) {
  if (bias_.values.defined() && x_type != at::kChar) bias_.values = bias_.values.to(result_type);
}

void DenseProduct::ScaledIntegersInto(at::Tensor out, const at::Tensor& x) const {
  at::Tensor sum = at::_int_mm(x, weight_);
  const at::Tensor& bias = bias_.values;
  if (!bias.defined()) {
    at::mul_out(out, sum, column_scale_);
  } else if (bias.scalar_type() == at::kInt) {
    at::mul_out(out, sum.add_(bias), column_scale_);
  } else {
    at::add_out(out, sum, bias.to(at::kFloat));
    out.mul_(column_scale_);
  }
}

void DenseProduct::FloatsInto(at::Tensor out, const at::Tensor& x) const {
  const at::Tensor bias = bias_.is_scaled ? bias_.values : at::Tensor();
  if (is_wide_) {
    WideProductInto(out, x, weight_);
    if (bias.defined()) out.add_(bias);
  } else if (bias.defined()) {
    at::addmm_out(out, bias, x.to(result_type_), weight_);
  } else {
    at::mm_out(out, x.to(result_type_), weight_);
  }
  if (column_scale_.defined()) out.mul_(column_scale_);
}

void DenseProduct::Into(at::Tensor out, const at::Tensor& x, const at::Tensor& row_scale,
                        const at::Tensor& addend) const {
  if (out.numel() == 0) return;
  if (x_type_ == at::kChar) {
    ScaledIntegersInto(out, x);
  } else {
    FloatsInto(out, x);
  }
  if (row_scale.defined()) out.mul_(row_scale.unsqueeze(1));
  if (bias_.values.defined() && !bias_.is_scaled) out.add_(bias_.values);
  if (addend.defined()) out.add_(addend);
}

at::Tensor DecodeScale(const at::Tensor& scale) {
  const at::Tensor flat = scale.reshape({-1});
  if (scale.scalar_type() != at::kLong && scale.scalar_type() != at::kUInt64) return flat.to(at::kFloat);
  return flat.contiguous().view(at::kFloat).slice(0, 0, std::nullopt, 2);  // little-endian: the low half comes first
}

at::Tensor DequantisedWeight(const at::Tensor& weight, const at::Tensor& scale, const at::Tensor& offset,
                             int64_t group_size) {
  const auto for_each_row = [&](const at::Tensor& values) {
    const at::Tensor exact = values.to(at::kFloat);
    return group_size == 0 ? exact : exact.repeat_interleave(group_size, 0).narrow(0, 0, weight.size(0));
  };
  at::Tensor real = weight.to(at::kFloat);
  if (offset.defined()) real.add_(for_each_row(offset));
  return real.mul_(for_each_row(scale));
}

}  // namespace npu::distributed
