// The fused LSTM and GRU cells that nn.LSTM and nn.GRU call on accelerators, one task each.
// Formulas: torch.nn.LSTMCell and torch.nn.GRUCell.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "empty.h"
#include "kernel_arguments.h"
#include "launch_op.h"

namespace npu::aten {
namespace {

// `gates` = input part + hidden part, each with its bias.
void sum_gates(at::Tensor gates, const at::Tensor& input, const at::Tensor& hidden, const OptTensor& input_bias,
               const OptTensor& hidden_bias) {
  at::add_out(gates, input, hidden);
  if (has(input_bias)) gates.add_(*input_bias);
  if (has(hidden_bias)) gates.add_(*hidden_bias);
}

void check_gates(const char* op, const at::Tensor& input_gates, const at::Tensor& hidden_gates, const at::Tensor& state,
                 std::int64_t count) {
  TORCH_CHECK(input_gates.dim() == 2 && input_gates.sizes() == hidden_gates.sizes(), op,
              ": input_gates and hidden_gates must be (batch, ", count, " * hidden), but got ", input_gates.sizes(),
              " and ", hidden_gates.sizes());
  TORCH_CHECK(state.dim() == 2 && state.size(0) == input_gates.size(0) && state.size(1) * count == input_gates.size(1),
              op, ": the state must be (", input_gates.size(0), ", ", input_gates.size(1) / count, "), but got ",
              state.sizes());
}

// ---- LSTM -----------------------------------------------------------------------------------------------------------

// `workspace`: the activated gates i, f, g, o side by side, for the backward.
void run_lstm_cell(const at::Tensor& hy, const at::Tensor& cy, const at::Tensor& workspace,
                   const at::Tensor& input_gates, const at::Tensor& hidden_gates, const at::Tensor& cx,
                   const OptTensor& input_bias, const OptTensor& hidden_bias) {
  sum_gates(workspace, input_gates, hidden_gates, input_bias, hidden_bias);
  const auto width = cx.size(1);
  workspace.narrow(1, 0, 2 * width).sigmoid_();
  workspace.narrow(1, 2 * width, width).tanh_();
  workspace.narrow(1, 3 * width, width).sigmoid_();
  const auto gates = workspace.chunk(4, 1);
  at::mul_out(mut(cy), gates[1], cx);
  mut(cy).addcmul_(gates[0], gates[2]);
  at::tanh_out(mut(hy), cy);
  mut(hy).mul_(gates[3]);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(const at::Tensor& input_gates, const at::Tensor& hidden_gates,
                                                         const at::Tensor& cx, const OptTensor& input_bias,
                                                         const OptTensor& hidden_bias) {
  check_gates("_thnn_fused_lstm_cell", input_gates, hidden_gates, cx, 4);
  auto hy = empty_npu_like(cx), cy = empty_npu_like(cx), workspace = empty_npu_like(input_gates);
  launch_op<&run_lstm_cell>("aten::_thnn_fused_lstm_cell", hy, cy, workspace, input_gates, hidden_gates, cx, input_bias,
                            hidden_bias);
  return {hy, cy, workspace};
}

void run_lstm_cell_backward(const at::Tensor& grad_gates, const at::Tensor& grad_cx, const OptTensor& grad_bias,
                            const OptTensor& grad_hy, const OptTensor& grad_cy, const at::Tensor& cx,
                            const at::Tensor& cy, const at::Tensor& workspace) {
  const auto gates = workspace.chunk(4, 1), grads = grad_gates.chunk(4, 1);
  const auto tanh_cy = cy.tanh();
  const auto dhy = has(grad_hy) ? *grad_hy : at::zeros_like(cy);
  auto dcy = at::tanh_backward(dhy * gates[3], tanh_cy);
  if (has(grad_cy)) dcy.add_(*grad_cy);
  mut(grads[0]).copy_(at::sigmoid_backward(dcy * gates[2], gates[0]));
  mut(grads[1]).copy_(at::sigmoid_backward(dcy * cx, gates[1]));
  mut(grads[2]).copy_(at::tanh_backward(dcy * gates[0], gates[2]));
  mut(grads[3]).copy_(at::sigmoid_backward(dhy * tanh_cy, gates[3]));
  at::mul_out(mut(grad_cx), dcy, gates[1]);
  if (has(grad_bias)) at::sum_out(mut(*grad_bias), grad_gates, 0);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell_backward(const OptTensor& grad_hy, const OptTensor& grad_cy,
                                                                  const at::Tensor& cx, const at::Tensor& cy,
                                                                  const at::Tensor& workspace, bool has_bias) {
  if (!has(grad_hy) && !has(grad_cy)) return {};
  auto grad_gates = empty_npu_like(workspace), grad_cx = empty_npu_like(cx);
  at::Tensor grad_bias;
  if (has_bias) grad_bias = empty_npu({workspace.size(1)}, workspace.scalar_type(), workspace.device().index());
  launch_op<&run_lstm_cell_backward>("aten::_thnn_fused_lstm_cell_backward", grad_gates, grad_cx, OptTensor(grad_bias),
                                     grad_hy, grad_cy, cx, cy, workspace);
  return {grad_gates, grad_cx, grad_bias};
}

// ---- GRU ------------------------------------------------------------------------------------------------------------

// `workspace`: r, z, n, hx and the hidden part of n side by side, for the backward.
void run_gru_cell(const at::Tensor& hy, const at::Tensor& workspace, const at::Tensor& input_gates,
                  const at::Tensor& hidden_gates, const at::Tensor& hx, const OptTensor& input_bias,
                  const OptTensor& hidden_bias) {
  const auto width = hx.size(1);
  const auto parts = workspace.chunk(5, 1);
  const auto &r = parts[0], &z = parts[1], &n = parts[2], &kept_hx = parts[3], &hidden_n = parts[4];
  const auto part = [&](const OptTensor& bias, std::int64_t from, std::int64_t count) {
    return has(bias) ? OptTensor(bias->narrow(0, from * width, count * width)) : std::nullopt;
  };
  auto rz = workspace.narrow(1, 0, 2 * width);
  sum_gates(rz, input_gates.narrow(1, 0, 2 * width), hidden_gates.narrow(1, 0, 2 * width), part(input_bias, 0, 2),
            part(hidden_bias, 0, 2));
  rz.sigmoid_();
  mut(hidden_n).copy_(hidden_gates.narrow(1, 2 * width, width));
  if (has(hidden_bias)) mut(hidden_n).add_(*part(hidden_bias, 2, 1));
  at::mul_out(mut(n), r, hidden_n);
  mut(n).add_(input_gates.narrow(1, 2 * width, width));
  if (has(input_bias)) mut(n).add_(*part(input_bias, 2, 1));
  mut(n).tanh_();
  mut(kept_hx).copy_(hx);
  at::sub_out(mut(hy), hx, n);
  mut(hy).mul_(z).add_(n);
}

std::tuple<at::Tensor, at::Tensor> gru_cell(const at::Tensor& input_gates, const at::Tensor& hidden_gates,
                                            const at::Tensor& hx, const OptTensor& input_bias,
                                            const OptTensor& hidden_bias) {
  check_gates("_thnn_fused_gru_cell", input_gates, hidden_gates, hx, 3);
  auto hy = empty_npu_like(hx);
  auto workspace = empty_npu({hx.size(0), 5 * hx.size(1)}, hx.scalar_type(), hx.device().index());
  launch_op<&run_gru_cell>("aten::_thnn_fused_gru_cell", hy, workspace, input_gates, hidden_gates, hx, input_bias,
                           hidden_bias);
  return {hy, workspace};
}

void run_gru_cell_backward(const at::Tensor& grad_input, const at::Tensor& grad_hidden, const at::Tensor& grad_hx,
                           const OptTensor& grad_input_bias, const OptTensor& grad_hidden_bias,
                           const at::Tensor& grad_hy, const at::Tensor& workspace) {
  const auto parts = workspace.chunk(5, 1);
  const auto &r = parts[0], &z = parts[1], &n = parts[2], &hx = parts[3], &hidden_n = parts[4];
  at::mul_out(mut(grad_hx), grad_hy, z);
  const auto grad_n = at::tanh_backward(grad_hy - grad_hx, n);
  const auto grad_z = at::sigmoid_backward(grad_hy * (hx - n), z);
  const auto grad_r = at::sigmoid_backward(grad_n * hidden_n, r);
  at::cat_out(mut(grad_input), {grad_r, grad_z, grad_n}, 1);
  at::cat_out(mut(grad_hidden), {grad_r, grad_z, grad_n * r}, 1);
  if (has(grad_input_bias)) at::sum_out(mut(*grad_input_bias), grad_input, 0);
  if (has(grad_hidden_bias)) at::sum_out(mut(*grad_hidden_bias), grad_hidden, 0);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gru_cell_backward(const at::Tensor& grad_hy,
                                                                                         const at::Tensor& workspace,
                                                                                         bool has_bias) {
  const int device = workspace.device().index();
  const auto dtype = workspace.scalar_type();
  const auto width = workspace.size(1) / 5 * 3;
  auto grad_input = empty_npu({workspace.size(0), width}, dtype, device), grad_hidden = empty_npu_like(grad_input);
  auto grad_hx = empty_npu_like(grad_hy);
  at::Tensor input_bias, hidden_bias;
  if (has_bias) input_bias = empty_npu({width}, dtype, device), hidden_bias = empty_npu({width}, dtype, device);
  launch_op<&run_gru_cell_backward>("aten::_thnn_fused_gru_cell_backward", grad_input, grad_hidden, grad_hx,
                                    OptTensor(input_bias), OptTensor(hidden_bias), grad_hy, workspace);
  return {grad_input, grad_hidden, grad_hx, input_bias, hidden_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_thnn_fused_lstm_cell", TORCH_FN(lstm_cell));
  m.impl("_thnn_fused_lstm_cell_backward_impl", TORCH_FN(lstm_cell_backward));
  m.impl("_thnn_fused_gru_cell", TORCH_FN(gru_cell));
  m.impl("_thnn_fused_gru_cell_backward", TORCH_FN(gru_cell_backward));
}

}  // namespace npu::aten
