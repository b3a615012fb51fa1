#include "mc2/scaled_operands.h"

#include <ATen/ATen.h>

namespace npu::distributed {

void ScaledOperands::Check(const char* op) const {
  RefuseFloat8(op, "self", self);
  RefuseFloat8(op, "x2", x2);
  MC2_CHECK(self.dim() == 2, op, "self", "expected 2 dims [m, k], but got the shape ", self.sizes());
  MC2_CHECK(x2.dim() == 2, op, "x2", "expected 2 dims [k, n], but got the shape ", x2.sizes());
  const at::ScalarType type = self.scalar_type();
  MC2_CHECK(type == at::kHalf || type == at::kBFloat16 || type == at::kChar, op, "self",
            "expected float16, bfloat16 or int8, but got ", type);
  MC2_CHECK(x2.scalar_type() == type, op, "x2", "expected ", type, " like self, but got ", x2.scalar_type());
  const int64_t n = x2.size(1);
  if (Given(bias)) {
    MC2_CHECK(bias->dim() == 1 && bias->size(0) == n, op, "bias", "expected the shape [", n, "], but got ",
              bias->sizes());
    const at::ScalarType got = bias->scalar_type();
    MC2_CHECK(type == at::kChar ? got == at::kInt || got == at::kFloat || got == at::kHalf || got == at::kBFloat16
                                : got == type,
              op, "bias", "expected ", type == at::kChar ? "int32, float32, float16 or bfloat16" : "the type of self",
              ", but got ", got);
  }
  if (Given(x2_scale)) {
    CheckRow(op, "x2_scale", *x2_scale, n);
    const at::ScalarType got = x2_scale->scalar_type();
    MC2_CHECK(got == at::kFloat || got == at::kLong, op, "x2_scale", "expected float32 or int64, but got ", got);
    if (got == at::kFloat && output_dtype) {
      MC2_CHECK(*output_dtype == at::kHalf || *output_dtype == at::kBFloat16 || *output_dtype == at::kFloat, op,
                "output_dtype", "expected float16, bfloat16 or float32, but got ", *output_dtype);
    }
  }
  MC2_CHECK(type != at::kChar || Given(x2_scale), op, "x2_scale", "int8 tensors need it; pass float32 or int64 [1, ", n,
            "]");
  if (Given(x1_scale)) {
    const int64_t m = self.size(0);
    MC2_CHECK(Given(x2_scale), op, "x1_scale", "it has a meaning beside x2_scale only; pass x2_scale as well");
    MC2_CHECK(x1_scale->scalar_type() == at::kFloat, op, "x1_scale", "expected float32, but got ",
              x1_scale->scalar_type());
    MC2_CHECK(x1_scale->numel() == m && (x1_scale->dim() == 1 || (x1_scale->dim() == 2 && x1_scale->size(1) == 1)), op,
              "x1_scale", "expected the shape [", m, ", 1], but got ", x1_scale->sizes());
  }
}

at::ScalarType ScaledOperands::ResultType() const {
  if (!Given(x2_scale)) return self.scalar_type();
  return x2_scale->scalar_type() == at::kLong ? at::kHalf : output_dtype.value_or(at::kBFloat16);
}

DenseProduct ScaledOperands::Product(at::ScalarType type, const at::Tensor& weight) const {
  return DenseProduct(type, self.scalar_type(), weight, {OrUndefined(bias)},
                      is_scaled() ? DecodeScale(*x2_scale) : at::Tensor());
}

at::Tensor ScaledOperands::RowScale() const {
  return Given(x1_scale) ? x1_scale->reshape({-1}).contiguous() : at::Tensor();
}

}  // namespace npu::distributed
