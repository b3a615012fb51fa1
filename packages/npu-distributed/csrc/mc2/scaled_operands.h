// The operands that all_gather + mm and mm + reduce_scatter share.
#pragma once

#include <ATen/core/Tensor.h>

#include "mc2/argument_checks.h"
#include "mc2/dense_product.h"

namespace npu::distributed {

struct ScaledOperands {
  const at::Tensor& self;  ///< [m, k]
  const at::Tensor& x2;    ///< [k, n]
  const OptionalTensor& bias;
  const OptionalTensor& x1_scale;
  const OptionalTensor& x2_scale;
  std::optional<at::ScalarType> output_dtype;

  /// Throws c10::Error unless types and shapes fit together; the inner sizes are the caller's to compare.
  void Check(const char* op) const;
  /// float16 for an int64 x2_scale, `output_dtype` (default bfloat16) for another one, else the type of self.
  at::ScalarType ResultType() const;
  bool is_scaled() const { return Given(x2_scale); }
  /// The product of `type` with `weight`, which is x2 or made of it.
  DenseProduct Product(at::ScalarType type, const at::Tensor& weight) const;
  /// x1_scale as float32 [m], or undefined.
  at::Tensor RowScale() const;
};

}  // namespace npu::distributed
