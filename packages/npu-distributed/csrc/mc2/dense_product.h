// The matrix product of one rank, in all the forms the fused operators know.
#pragma once

#include <ATen/core/Tensor.h>

namespace npu::distributed {

struct Bias {
  at::Tensor values;      ///< [n]; may be undefined
  bool is_scaled = true;  ///< added before the scales
};

/// P = ((x @ weight) + bias) * column_scale * row_scale + addend for some rows of x; the last four are optional.
///
/// As float32 nothing of it is rounded to 16 bits, and for int8 the sum of products is exact in int32.  In the type of
/// x, aten's product accumulates in float32 and rounds once.
class DenseProduct {
 public:
  /// `result_type`: of P, float32 or the type of x; float32 with scales or an addend.  `x_type`: the type of x.
  /// `weight` [k, n], which may be a transposed view, of that type or float32; `column_scale` float32 [n] or [1].
  DenseProduct(at::ScalarType result_type, at::ScalarType x_type, const at::Tensor& weight, Bias bias,
               at::Tensor column_scale);

  at::ScalarType result_type() const { return result_type_; }

  /// Queues out = P on the current stream.  x [m, k]; `row_scale` float32 [m] or undefined; `addend` [m, n] or
  /// undefined; `out` [m, n] of result_type().
  void Into(at::Tensor out, const at::Tensor& x, const at::Tensor& row_scale = {}, const at::Tensor& addend = {}) const;

 private:
  void ScaledIntegersInto(at::Tensor out, const at::Tensor& x) const;
  void FloatsInto(at::Tensor out, const at::Tensor& x) const;

  at::ScalarType result_type_;
  at::ScalarType x_type_;
  bool is_wide_;  ///< 16-bit operands, float32 result
  at::Tensor weight_;
  Bias bias_;
  at::Tensor column_scale_;
};

/// Scales as float32 [n] or [1]: `scale` is bfloat16, float16 or float32, or an int64 or uint64 whose low 32 bits are
/// the pattern of a float32 (npu_trans_quant_param).
at::Tensor DecodeScale(const at::Tensor& scale);

/// (weight + offset) * scale in float32.  weight int8 [k, n]; scale [1], [n] or [1, n], or [ceil(k / group_size), n]
/// when `group_size` is not 0; `offset` like scale, or undefined.
at::Tensor DequantisedWeight(const at::Tensor& weight, const at::Tensor& scale, const at::Tensor& offset,
                             int64_t group_size);

}  // namespace npu::distributed
