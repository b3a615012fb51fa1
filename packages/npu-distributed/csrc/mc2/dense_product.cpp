#include "mc2/dense_product.h"

#include <ATen/ATen.h>

#include <utility>

namespace npu::distributed {

DenseProduct::DenseProduct(at::ScalarType result_type, at::ScalarType x_type, const at::Tensor& weight,
                           const at::Tensor& bias, at::Tensor column_scale)
    : result_type_(result_type),
      x_type_(x_type),
      weight_(x_type == at::kChar ? weight : weight.to(result_type)),
      bias_(bias.defined() && x_type != at::kChar ? bias.to(result_type) : bias),
      column_scale_(std::move(column_scale)) {}

void DenseProduct::ScaledIntegersInto(at::Tensor out, const at::Tensor& x) const {
  at::Tensor sum = at::_int_mm(x, weight_);
  if (!bias_.defined()) {
    at::mul_out(out, sum, column_scale_);
  } else if (bias_.scalar_type() == at::kInt) {
    at::mul_out(out, sum.add_(bias_), column_scale_);
  } else {
    at::add_out(out, sum, bias_.to(at::kFloat));
    out.mul_(column_scale_);
  }
}

void DenseProduct::Into(at::Tensor out, const at::Tensor& x, const at::Tensor& row_scale,
                        const at::Tensor& addend) const {
  if (out.numel() == 0) return;
  if (x_type_ == at::kChar) {
    ScaledIntegersInto(out, x);
  } else if (bias_.defined()) {
    at::addmm_out(out, bias_, x.to(result_type_), weight_);
  } else if (addend.defined()) {
    at::addmm_out(out, addend.to(result_type_), x.to(result_type_), weight_);
    return;
  } else {
    at::mm_out(out, x.to(result_type_), weight_);
  }
  if (column_scale_.defined() && x_type_ != at::kChar) out.mul_(column_scale_);
  if (row_scale.defined()) out.mul_(row_scale.unsqueeze(1));
  if (addend.defined()) out.add_(addend);
}

at::ScalarType TermType(at::ScalarType x_type, bool is_scaled) {
  return is_scaled || x_type == at::kHalf ? at::kFloat : x_type;
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
  return real.mul_(for_each_row(scale)).to(scale.scalar_type());
}

}  // namespace npu::distributed
