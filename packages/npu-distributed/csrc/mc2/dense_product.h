// The matrix product of one rank, in all the forms the fused operators know.
#pragma once

#include <ATen/core/Tensor.h>

namespace npu::distributed {

/// P = ((x @ weight) + bias) * column_scale * row_scale + addend for some rows of x; the last four are optional.
///
/// As float32 nothing of it is rounded to 16 bits, and for int8 the sum of products is exact in int32.  In the type of
/// x, aten's product accumulates in float32 and rounds once; an addend beside a bias is one more rounding.
class DenseProduct {
 public:
  /// `result_type`: of P, float32 with scales, else float32 or the type of x.  `x_type`: the type of x and of `weight`
  /// [k, n], which may be a transposed view.  `bias` [n]; `column_scale` float32 [n] or [1].
  DenseProduct(at::ScalarType result_type, at::ScalarType x_type, const at::Tensor& weight, const at::Tensor& bias,
               at::Tensor column_scale);

  int64_t columns() const { return weight_.size(1); }
  at::ScalarType result_type() const { return result_type_; }

  /// Queues out = P on the current stream.  x [m, k]; `row_scale` float32 [m] or undefined; `addend` [m, n] or
  /// undefined; `out` [m, n] of result_type().
  void Into(at::Tensor out, const at::Tensor& x, const at::Tensor& row_scale = {}, const at::Tensor& addend = {}) const;

 private:
  void ScaledIntegersInto(at::Tensor out, const at::Tensor& x) const;

  at::ScalarType result_type_;
  at::ScalarType x_type_;
  at::Tensor weight_;
  at::Tensor bias_;
  at::Tensor column_scale_;
};

/// The type in which the terms of a sum over ranks are computed and travel, when x is of `x_type`.  float16 terms stay
/// float32: they may be too large for float16 where their sum is not.  bfloat16 has the range of float32, and a float32
/// product of bfloat16 takes 2.3 times as long on a CPU with instructions for it (aten has no product of bfloat16 that
/// gives float32), so without scales those terms are rounded to bfloat16.
at::ScalarType TermType(at::ScalarType x_type, bool is_scaled);

/// Scales as float32 [n] or [1]: `scale` is bfloat16, float16 or float32, or an int64 or uint64 whose low 32 bits are
/// the pattern of a float32 (npu_trans_quant_param).
at::Tensor DecodeScale(const at::Tensor& scale);

/// (weight + offset) * scale, computed in float32 and rounded once to the type of `scale`.  weight int8 [k, n]; scale
/// [1], [n] or [1, n], or [ceil(k / group_size), n] when `group_size` is not 0; `offset` like scale, or undefined.
at::Tensor DequantisedWeight(const at::Tensor& weight, const at::Tensor& scale, const at::Tensor& offset,
                             int64_t group_size);

}  // namespace npu::distributed
