// Gradient scaling: one task unscales a whole list of gradients and notes an overflow, one task adapts the scale.
#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>
#include <torch/library.h>

#include "kernel_arguments.h"
#include "launch_op.h"

namespace npu::aten {
namespace {

constexpr const char* kUnscale = "_amp_foreach_non_finite_check_and_unscale_";
constexpr const char* kUpdate = "_amp_update_scale_";

void check_cell(const char* op, const char* name, const at::Tensor& cell, at::ScalarType dtype) {
  TORCH_CHECK(is_npu(cell) && cell.numel() == 1 && cell.scalar_type() == dtype, op, ": ", name,
              " must be a tensor on npu with one element of ", dtype, ", but got ", cell.numel(), " element(s) of ",
              cell.scalar_type(), " on ", cell.device());
}

void run_unscale(const at::TensorList& gradients, const at::Tensor& found_inf, const at::Tensor& inv_scale) {
  at::_amp_foreach_non_finite_check_and_unscale_(gradients, mut(found_inf), inv_scale);
}

// Multiplies every gradient by inv_scale in place and sets found_inf to 1 if one of them holds an inf or a nan.
void unscale(at::TensorList gradients, at::Tensor& found_inf, const at::Tensor& inv_scale) {
  if (gradients.empty()) return;
  check_cell(kUnscale, "found_inf", found_inf, at::kFloat);
  check_cell(kUnscale, "inv_scale", inv_scale, at::kFloat);
  for (const auto& gradient : gradients) {
    TORCH_CHECK(is_npu(gradient) && gradient.layout() == at::kStrided, kUnscale,
                ": scaled_grads must be strided tensors on npu, but one is ", gradient.layout(), " on ",
                gradient.device());
    TORCH_CHECK(at::isFloatingType(gradient.scalar_type()), kUnscale,
                ": scaled_grads must have a floating dtype, but one has ", gradient.scalar_type());
    at::assert_no_internal_overlap(gradient);
  }
  launch_op<&run_unscale>("aten::_amp_foreach_non_finite_check_and_unscale_", gradients, found_inf, inv_scale);
}

void run_update(const at::Tensor& scale, const at::Tensor& growth_tracker, const at::Tensor& found_inf,
                double growth_factor, double backoff_factor, std::int64_t growth_interval) {
  at::_amp_update_scale_(mut(scale), mut(growth_tracker), found_inf, growth_factor, backoff_factor, growth_interval);
}

at::Tensor& update_scale(at::Tensor& scale, at::Tensor& growth_tracker, const at::Tensor& found_inf,
                         double growth_factor, double backoff_factor, std::int64_t growth_interval) {
  check_cell(kUpdate, "current_scale", scale, at::kFloat);
  check_cell(kUpdate, "growth_tracker", growth_tracker, at::kInt);
  check_cell(kUpdate, "found_inf", found_inf, at::kFloat);
  launch_op<&run_update>("aten::_amp_update_scale_", scale, growth_tracker, found_inf, growth_factor, backoff_factor,
                         growth_interval);
  return scale;
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_amp_foreach_non_finite_check_and_unscale_", TORCH_FN(unscale));
  m.impl("_amp_update_scale_", TORCH_FN(update_scale));
}

}  // namespace npu::aten
