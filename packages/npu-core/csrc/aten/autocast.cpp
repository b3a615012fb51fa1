// Autocast for npu: which ops run in the lower precision, which in float32, which in the widest dtype of their
// arguments.  Every other op falls through unchanged; torch's own, longer lists for other devices do not apply.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

namespace npu::aten {
namespace {

at::Tensor binary_cross_entropy_banned(const at::Tensor& /*self*/, const at::Tensor& /*target*/,
                                       const std::optional<at::Tensor>& /*weight*/, std::int64_t /*reduction*/) {
  TORCH_CHECK(
      false,
      "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast on npu: their input "
      "is a probability, which underflows in half precision. Use "
      "torch.nn.functional.binary_cross_entropy_with_logits or torch.nn.BCEWithLogitsLoss, or run it outside "
      "the autocast region in float32.");
}

}  // namespace

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

// The macros that make the casting kernels are torch's and name these without a namespace.
using at::IntArrayRef;
using at::Scalar;
using at::ScalarType;
using at::Tensor;

#define NPU_LOWER_PRECISION(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define NPU_FP32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define NPU_FP32_UNLESS_TOLD(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define NPU_WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  // Products: half the memory traffic, and the matrix units.
  NPU_LOWER_PRECISION(_convolution, deprecated)
  NPU_LOWER_PRECISION(_convolution)
  NPU_LOWER_PRECISION(conv1d)
  NPU_LOWER_PRECISION(conv2d)
  NPU_LOWER_PRECISION(conv3d)
  NPU_LOWER_PRECISION(conv_tbc)
  NPU_LOWER_PRECISION(conv_transpose1d)
  NPU_LOWER_PRECISION(conv_transpose2d, input)
  NPU_LOWER_PRECISION(conv_transpose3d, input)
  NPU_LOWER_PRECISION(convolution)
  NPU_LOWER_PRECISION(prelu)
  NPU_LOWER_PRECISION(addmm)
  NPU_LOWER_PRECISION(addmv)
  NPU_LOWER_PRECISION(addr)
  NPU_LOWER_PRECISION(matmul)
  NPU_LOWER_PRECISION(einsum)
  NPU_LOWER_PRECISION(mm)
  NPU_LOWER_PRECISION(mv)
  NPU_LOWER_PRECISION(linear)
  NPU_LOWER_PRECISION(addbmm)
  NPU_LOWER_PRECISION(baddbmm)
  NPU_LOWER_PRECISION(bmm)
  NPU_LOWER_PRECISION(chain_matmul)
  NPU_LOWER_PRECISION(linalg_multi_dot)
  NPU_LOWER_PRECISION(_thnn_fused_lstm_cell)
  NPU_LOWER_PRECISION(_thnn_fused_gru_cell)
  NPU_LOWER_PRECISION(lstm_cell)
  NPU_LOWER_PRECISION(gru_cell)
  NPU_LOWER_PRECISION(rnn_tanh_cell)
  NPU_LOWER_PRECISION(rnn_relu_cell)
  NPU_LOWER_PRECISION(scaled_dot_product_attention)

  // Ops whose results leave half precision's range or lose its few digits.
  NPU_FP32(acos)
  NPU_FP32(asin)
  NPU_FP32(cosh)
  NPU_FP32(erfinv)
  NPU_FP32(exp)
  NPU_FP32(expm1)
  NPU_FP32(log)
  NPU_FP32(log10)
  NPU_FP32(log2)
  NPU_FP32(log1p)
  NPU_FP32(reciprocal)
  NPU_FP32(rsqrt)
  NPU_FP32(sinh)
  NPU_FP32(tan)
  NPU_FP32(pow, Tensor_Scalar)
  NPU_FP32(pow, Tensor_Tensor)
  NPU_FP32(pow, Scalar)
  NPU_FP32(softplus)
  NPU_FP32(layer_norm)
  NPU_FP32(native_layer_norm)
  NPU_FP32(group_norm)
  NPU_FP32(frobenius_norm, dim)
  NPU_FP32(nuclear_norm)
  NPU_FP32(nuclear_norm, dim)
  NPU_FP32(cosine_similarity)
  NPU_FP32(poisson_nll_loss)
  NPU_FP32(cosine_embedding_loss)
  NPU_FP32(nll_loss)
  NPU_FP32(nll_loss2d)
  NPU_FP32(hinge_embedding_loss)
  NPU_FP32(kl_div)
  NPU_FP32(l1_loss)
  NPU_FP32(smooth_l1_loss)
  NPU_FP32(huber_loss)
  NPU_FP32(mse_loss)
  NPU_FP32(margin_ranking_loss)
  NPU_FP32(multilabel_margin_loss)
  NPU_FP32(soft_margin_loss)
  NPU_FP32(triplet_margin_loss)
  NPU_FP32(multi_margin_loss)
  NPU_FP32(binary_cross_entropy_with_logits)
  NPU_FP32(dist)
  NPU_FP32(pdist)
  NPU_FP32(cdist)
  NPU_FP32(renorm)
  NPU_FP32(logsumexp)

  // The same, but the caller may ask for another dtype.
  NPU_FP32_UNLESS_TOLD(prod)
  NPU_FP32_UNLESS_TOLD(prod, dim_int)
  NPU_FP32_UNLESS_TOLD(softmax, int)
  NPU_FP32_UNLESS_TOLD(log_softmax, int)
  NPU_FP32_UNLESS_TOLD(cumprod)
  NPU_FP32_UNLESS_TOLD(cumsum)
  NPU_FP32_UNLESS_TOLD(linalg_vector_norm)
  NPU_FP32_UNLESS_TOLD(linalg_matrix_norm)
  NPU_FP32_UNLESS_TOLD(linalg_matrix_norm, str_ord)
  NPU_FP32_UNLESS_TOLD(sum)
  NPU_FP32_UNLESS_TOLD(sum, dim_IntList)
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(KERNEL_DIFFERENT_REDISPATCH_SIGNATURE_PRIVATEUSEONE)  // norm

  // Ops that need one dtype for all their arguments.
  NPU_WIDEST(addcdiv)
  NPU_WIDEST(addcmul)
  NPU_WIDEST(atan2)
  NPU_WIDEST(bilinear)
  NPU_WIDEST(cross)
  NPU_WIDEST(dot)
  NPU_WIDEST(grid_sampler)
  NPU_WIDEST(index_put)
  NPU_WIDEST(tensordot)
  NPU_WIDEST(scatter_add)

  m.impl("binary_cross_entropy", TORCH_FN(binary_cross_entropy_banned));
}

}  // namespace npu::aten
