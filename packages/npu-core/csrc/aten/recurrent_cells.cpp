// The fused LSTM and GRU cells that nn.LSTM and nn.GRU call on accelerators, composed of asynchronous npu ops.
// Formulas: torch.nn.LSTMCell and torch.nn.GRUCell.
#include <ATen/ATen.h>
#include <torch/library.h>

namespace npu::aten {
namespace {

using OptTensor = std::optional<at::Tensor>;

bool has(const OptTensor& t) { return t.has_value() && t->defined(); }

at::Tensor plus_bias(const at::Tensor& gates, const OptTensor& bias) { return has(bias) ? gates + *bias : gates; }

// Derivative of the sigmoid and of tanh, from their values.
at::Tensor sigmoid_slope(const at::Tensor& y) { return y * (1 - y); }
at::Tensor tanh_slope(const at::Tensor& y) { return 1 - y * y; }

// Returns (hy, cy, activated gates i, f, g, o side by side for the backward).
std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(const at::Tensor& input_gates, const at::Tensor& hidden_gates,
                                                         const at::Tensor& cx, const OptTensor& input_bias,
                                                         const OptTensor& hidden_bias) {
  const auto gates = plus_bias(input_gates, input_bias) + plus_bias(hidden_gates, hidden_bias);
  const auto parts = gates.chunk(4, 1);
  const auto i = parts[0].sigmoid(), f = parts[1].sigmoid(), g = parts[2].tanh(), o = parts[3].sigmoid();
  auto cy = f * cx + i * g;
  auto hy = o * cy.tanh();
  return {hy, cy, at::cat({i, f, g, o}, 1)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell_backward(const OptTensor& grad_hy, const OptTensor& grad_cy,
                                                                  const at::Tensor& cx, const at::Tensor& cy,
                                                                  const at::Tensor& workspace, bool has_bias) {
  if (!has(grad_hy) && !has(grad_cy)) return {};
  const auto parts = workspace.chunk(4, 1);
  const auto &i = parts[0], &f = parts[1], &g = parts[2], &o = parts[3];
  const auto tanh_cy = cy.tanh();
  const auto dhy = has(grad_hy) ? *grad_hy : at::zeros_like(cy);
  auto dcy = dhy * o * tanh_slope(tanh_cy);
  if (has(grad_cy)) dcy = dcy + *grad_cy;
  auto grad_gates = at::cat({dcy * g * sigmoid_slope(i), dcy * cx * sigmoid_slope(f), dcy * i * tanh_slope(g),
                             dhy * tanh_cy * sigmoid_slope(o)},
                            1);
  return {grad_gates, dcy * f, has_bias ? grad_gates.sum(0) : at::Tensor()};
}

// Returns (hy, [r, z, n, hx, hidden part of n] side by side for the backward).
std::tuple<at::Tensor, at::Tensor> gru_cell(const at::Tensor& input_gates, const at::Tensor& hidden_gates,
                                            const at::Tensor& hx, const OptTensor& input_bias,
                                            const OptTensor& hidden_bias) {
  const auto input = plus_bias(input_gates, input_bias).chunk(3, 1);
  const auto hidden = plus_bias(hidden_gates, hidden_bias).chunk(3, 1);
  const auto r = (input[0] + hidden[0]).sigmoid(), z = (input[1] + hidden[1]).sigmoid();
  const auto n = (input[2] + r * hidden[2]).tanh();
  auto hy = n + z * (hx - n);
  return {hy, at::cat({r, z, n, hx, hidden[2]}, 1)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gru_cell_backward(const at::Tensor& grad_hy,
                                                                                         const at::Tensor& workspace,
                                                                                         bool has_bias) {
  const auto parts = workspace.chunk(5, 1);
  const auto &r = parts[0], &z = parts[1], &n = parts[2], &hx = parts[3], &hidden_n = parts[4];
  const auto grad_n = grad_hy * (1 - z) * tanh_slope(n);
  const auto grad_z = grad_hy * (hx - n) * sigmoid_slope(z);
  const auto grad_r = grad_n * hidden_n * sigmoid_slope(r);
  auto grad_input = at::cat({grad_r, grad_z, grad_n}, 1);
  auto grad_hidden = at::cat({grad_r, grad_z, grad_n * r}, 1);
  return {grad_input, grad_hidden, grad_hy * z, has_bias ? grad_input.sum(0) : at::Tensor(),
          has_bias ? grad_hidden.sum(0) : at::Tensor()};
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_thnn_fused_lstm_cell", TORCH_FN(lstm_cell));
  m.impl("_thnn_fused_lstm_cell_backward_impl", TORCH_FN(lstm_cell_backward));
  m.impl("_thnn_fused_gru_cell", TORCH_FN(gru_cell));
  m.impl("_thnn_fused_gru_cell_backward", TORCH_FN(gru_cell_backward));
}

}  // namespace npu::aten
