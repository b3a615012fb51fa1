#include "shape_functions.h"

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <c10/util/strides.h>

#include <algorithm>
#include <set>
#include <string>
#include <unordered_map>

namespace npu::aten {
namespace {

using Arguments = c10::ArrayRef<c10::IValue>;

TensorShape contiguous(at::IntArrayRef sizes, at::ScalarType dtype) {
  TensorShape shape{true, dtype, {}, {}};
  shape.sizes.assign(sizes.begin(), sizes.end());
  const auto strides = c10::contiguous_strides(sizes);
  shape.strides.assign(strides.begin(), strides.end());
  return shape;
}

CallShape like_self(Arguments arguments) {
  const auto& self = arguments[0].toTensor();
  return {{contiguous(self.sizes(), self.scalar_type())}, {-1}, {}};
}

// Fourier transforms of torch's CPU kernels lay their result out with the dimensions that are not transformed first,
// the others after them, both by falling stride of the input; torch's meta kernels take us for a GPU, where it is
// otherwise.
TensorShape transformed(const at::Tensor& self, std::vector<std::int64_t> dims, size_t sorted, at::IntArrayRef sizes) {
  const auto falls = [&](std::int64_t a, std::int64_t b) { return self.stride(a) > self.stride(b); };
  std::stable_sort(dims.begin(), dims.begin() + static_cast<std::ptrdiff_t>(sorted), falls);
  std::vector<std::int64_t> order;
  for (std::int64_t d = 0; d < self.dim(); ++d) {
    if (std::find(dims.begin(), dims.end(), d) == dims.end()) order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(), falls);
  order.insert(order.end(), dims.begin(), dims.end());
  TensorShape shape = contiguous(sizes, at::toComplexType(self.scalar_type()));
  std::int64_t step = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    shape.strides[static_cast<size_t>(*d)] = step;
    step *= std::max<std::int64_t>(sizes[static_cast<size_t>(*d)], 1);
  }
  return shape;
}

// _fft_r2c(self, dim, normalization, onesided)
CallShape real_to_complex(Arguments arguments) {
  const auto& self = arguments[0].toTensor();
  const auto dims = arguments[1].toIntVector();
  TORCH_CHECK(at::isFloatingType(self.scalar_type()) && !dims.empty(),
              "_fft_r2c expects a real tensor and a dimension, but got ", self.scalar_type(), " and ", dims.size());
  auto sizes = self.sizes().vec();
  auto& last = sizes[static_cast<size_t>(dims.back())];
  if (arguments[3].toBool()) last = last / 2 + 1;
  return {{transformed(self, dims, dims.size() - 1, sizes)}, {-1}, {}};
}

// (fake-quantised values, whether each was in range)
CallShape like_self_and_mask(Arguments arguments) {
  const auto& self = arguments[0].toTensor();
  return {{contiguous(self.sizes(), self.scalar_type()), contiguous(self.sizes(), at::kBool)}, {-1, -1}, {}};
}

// _ctc_loss_backward(grad, log_probs, ...)
CallShape like_log_probs(Arguments arguments) { return like_self(arguments.slice(1)); }

// (a, tau): a as self, tau with min(m, n) reflectors.
CallShape geqrf(Arguments arguments) {
  const auto& self = arguments[0].toTensor();
  TORCH_CHECK(self.dim() >= 2, "torch.geqrf: input must have at least 2 dimensions.");
  std::vector<std::int64_t> tau(self.sizes().begin(), self.sizes().end() - 2);
  tau.push_back(std::min(self.size(-2), self.size(-1)));
  return {{contiguous(self.sizes(), self.scalar_type()), contiguous(tau, self.scalar_type())}, {-1, -1}, {}};
}

CallShape histogram_of_count(Arguments arguments) {
  const auto dtype = arguments[0].toTensor().scalar_type();
  const auto bins = arguments[1].toInt();
  TORCH_CHECK(bins > 0, "torch.histogram(): bins must be > 0, but got ", bins);
  return {{contiguous({bins}, dtype), contiguous({bins + 1}, dtype)}, {-1, -1}, {}};
}

CallShape histogram_of_edges(Arguments arguments) {
  const auto dtype = arguments[0].toTensor().scalar_type();
  const auto& bins = arguments[1].toTensor();
  TORCH_CHECK(bins.dim() == 1 && bins.numel() > 1, "torch.histogram(): bins must be 1-d with at least 2 edges");
  return {{contiguous({bins.numel() - 1}, dtype), contiguous({bins.numel()}, dtype)}, {-1, -1}, {}};
}

CallShape histogramdd_edges(Arguments arguments) {
  const auto dtype = arguments[0].toTensor().scalar_type();
  CallShape shape;
  for (const auto bins : arguments[1].toIntVector()) shape.results.push_back(contiguous({bins + 1}, dtype));
  shape.list_sizes.push_back(static_cast<std::int64_t>(shape.results.size()));
  return shape;
}

CallShape histogramdd_of_counts(Arguments arguments) {
  return {{contiguous(arguments[1].toIntVector(), arguments[0].toTensor().scalar_type())}, {-1}, {}};
}

CallShape histogramdd_of_edges(Arguments arguments) {
  std::vector<std::int64_t> sizes;
  for (const at::Tensor& edges : arguments[1].toTensorVector()) sizes.push_back(edges.numel() - 1);
  return {{contiguous(sizes, arguments[0].toTensor().scalar_type())}, {-1}, {}};
}

// (negative log likelihood per sample, log alpha): alpha has a blank around every label.  Tagged as depending on data
// for the overload that has its lengths in tensors; here they are numbers.
CallShape ctc_loss(Arguments arguments) {
  const auto& log_probs = arguments[0].toTensor();
  TORCH_CHECK(log_probs.dim() == 3, "ctc_loss: log_probs must have shape (T, N, C), but has ", log_probs.dim(),
              " dimensions");
  const auto lengths = arguments[3].toIntVector();
  const auto longest = lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
  const auto time = log_probs.size(0), batch = log_probs.size(1);
  return {{contiguous({batch}, log_probs.scalar_type()),
           contiguous({batch, time, 2 * longest + 1}, log_probs.scalar_type())},
          {-1, -1},
          {}};
}

}  // namespace

ShapeFunction own_shape_function(const c10::OperatorName& name) {
  static const std::unordered_map<std::string, ShapeFunction> functions = {
      {"aten::_fft_r2c", &real_to_complex},
      {"aten::_logcumsumexp", &like_self},
      {"aten::geqrf", &geqrf},
      {"aten::histogram.bin_ct", &histogram_of_count},
      {"aten::histogram.bins_tensor", &histogram_of_edges},
      {"aten::_histogramdd_bin_edges", &histogramdd_edges},
      {"aten::_histogramdd_from_bin_cts", &histogramdd_of_counts},
      {"aten::_histogramdd_from_bin_tensors", &histogramdd_of_edges},
      {"aten::_ctc_loss", &ctc_loss},
      {"aten::fake_quantize_per_tensor_affine_cachemask", &like_self_and_mask},
      {"aten::_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", &like_self_and_mask},
      {"aten::fake_quantize_per_channel_affine_cachemask", &like_self_and_mask},
      {"aten::_ctc_loss_backward", &like_log_probs},
  };
  const auto it = functions.find(c10::toString(name));
  return it == functions.end() ? nullptr : it->second;
}

bool keeps_shapes(const c10::OperatorName& name) {
  static const std::set<std::string> names = {"aten::_cummax_helper", "aten::_cummin_helper", "aten::_fused_adam_",
                                              "aten::_fused_adamw_",  "aten::_fused_sgd_",    "aten::_fused_adagrad_"};
  return names.count(name.name) != 0;
}

}  // namespace npu::aten
