// fast_gelu, npu_gelu and npu_silu with their gradients: schemas, checks and tasks.  Fakes and autograd:
// src/npu_ops_llm/activation.py.
#include "../kernels/activation.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "npu/kernels/dense_tensor.h"
#include "npu/kernels/deprecation.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/stable_tensor.h"
#include "npu/kernels/strided_tensor.h"
#include "npu/kernels/strings.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<ActivationKernels> kTables = {{
    &activation_kernels_base,
#if defined(__x86_64__)
    &activation_kernels_avx2,
    &activation_kernels_avx512,
    &activation_kernels_avx512_bf16,
#endif
}};

void check_floating(const char* op, const char* argument, const Tensor& tensor) {
  check_dtype(op, argument, tensor, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
}

struct ForwardTask {
  const ActivationKernels* kernels;
  ActivationForward work;
  int64_t count;
};

npu_status run_forward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const ForwardTask*>(payload);
  auto part = [&](int64_t begin, int64_t end) { task.kernels->forward(&task.work, begin, end); };
  return parallel_for(task.count, grain_for(1), part, error);
}

/// `name` is op with its namespace.
Tensor activate(const char* op, const char* name, const Tensor& self, int32_t kind) {
  check_floating(op, "self", self);
  Device device = device_of(self);
  npu_dtype dtype = dtype_of(self);
  Tensor x = as_dense(self);
  Tensor y = allocate_like(x, dtype, device);
  if (x.numel() == 0) return y;
  ForwardTask task{&kTables.active(), {x.data_ptr(), y.data_ptr(), dtype, kind, 2 * bytes_of(x)}, x.numel()};
  launch(device, name, run_forward, task, {reads(x), writes(y)});
  return y;
}

struct BackwardTask {
  const ActivationKernels* kernels;
  ActivationBackward work;
  int64_t count;
};

npu_status run_backward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const BackwardTask*>(payload);
  auto part = [&](int64_t begin, int64_t end) { task.kernels->backward(&task.work, begin, end); };
  return parallel_for(task.count, grain_for(1), part, error);
}

/// Of arguments with the same sizes and dtype; `output` for silu only.
Tensor differentiate(const char* name, const Tensor& grad, const Tensor& self, const OptionalTensor& output,
                     int32_t kind) {
  Device device = device_of(self);
  npu_dtype dtype = dtype_of(self);
  Tensor x = as_dense(self);
  Tensor dx = allocate_like(x, dtype, device);
  if (x.numel() == 0) return dx;
  Tensor dy = in_layout_of(x, grad);
  OptionalTensor y = output.has_value() ? OptionalTensor(in_layout_of(x, *output)) : std::nullopt;
  int64_t bytes = (y.has_value() ? 4 : 3) * bytes_of(x);
  BackwardTask task{&kTables.active(),
                    {dy.data_ptr(), x.data_ptr(), pointer_or_null(y), dx.data_ptr(), dtype, kind, bytes},
                    x.numel()};
  launch(device, name, run_backward, task, {reads(dy), reads(x), reads(y), writes(dx)});
  return dx;
}

/// The argument is a companion of self: same device, dtype and sizes.
void check_like(const char* op, const char* argument, const Tensor& tensor, const char* like, const Tensor& self) {
  check_same_device(op, device_of(self), argument, tensor);
  NPU_CHECK_ARG(dtype_of(tensor) == dtype_of(self), op, argument, "expected dtype ", npu_dtype_name(dtype_of(self)),
                " (as ", like, "), got ", npu_dtype_name(dtype_of(tensor)), "; convert it first");
  NPU_CHECK_ARG(same_sizes(tensor.sizes(), self.sizes()), op, argument, "expected shape ", shape_text(self.sizes()),
                " (as ", like, "), got ", shape_text(tensor.sizes()));
}

// ---- fast gelu -----------------------------------------------------------------------------------------------------

Tensor npu_fast_gelu(const Tensor& self) {
  return activate("npu_fast_gelu", "npu::npu_fast_gelu", self, ACTIVATION_FAST_GELU);
}

Tensor fast_gelu(const Tensor& self) { return activate("fast_gelu", "npu::fast_gelu", self, ACTIVATION_FAST_GELU); }

Tensor fast_gelu_backward(const Tensor& grad, const Tensor& self) {
  constexpr const char* kOp = "npu_fast_gelu_backward";
  check_floating(kOp, "self", self);
  check_like(kOp, "grad", grad, "self", self);
  return differentiate("npu::npu_fast_gelu_backward", grad, self, std::nullopt, ACTIVATION_FAST_GELU);
}

// ---- gelu ----------------------------------------------------------------------------------------------------------

int32_t gelu_kind(const char* op, const String& approximate) {
  if (approximate == "none") return ACTIVATION_GELU;
  NPU_CHECK_ARG(approximate == "tanh", op, "approximate", "approximate argument must be either none or tanh, got '",
                approximate.value, "'");
  return ACTIVATION_GELU_TANH;
}

Tensor gelu(const Tensor& self, String approximate) {
  return activate("npu_gelu", "npu::npu_gelu", self, gelu_kind("npu_gelu", approximate));
}

/// Sizes that both broadcast to.
std::vector<int64_t> broadcast_sizes(const char* op, Sizes grad, Sizes self) {
  std::vector<int64_t> sizes(std::max(grad.size(), self.size()), 1);
  for (size_t i = 0; i < sizes.size(); ++i) {
    int64_t a = i < grad.size() ? grad[grad.size() - 1 - i] : 1, b = i < self.size() ? self[self.size() - 1 - i] : 1;
    NPU_CHECK_ARG(a == b || a == 1 || b == 1, op, "grad_output",
                  "expected a shape that broadcasts with self's; self has shape ", shape_text(self),
                  ", grad_output has shape ", shape_text(grad));
    sizes[sizes.size() - 1 - i] = a == 1 ? b : a;
  }
  return sizes;
}

/// A copy with these sizes and this dtype, or the tensor itself where it has them.
Tensor broadcast_as(const Tensor& tensor, Sizes sizes, npu_dtype dtype) {
  if (dtype_of(tensor) == dtype && same_sizes(tensor.sizes(), sizes)) return tensor;
  Tensor copy = allocate(sizes, dtype, device_of(tensor));
  torch::stable::copy_(copy, tensor);
  return copy;
}

Tensor gelu_backward(const Tensor& grad_output, const Tensor& self, String approximate) {
  constexpr const char* kOp = "npu_gelu_backward";
  int32_t kind = gelu_kind(kOp, approximate);
  check_floating(kOp, "self", self);
  check_floating(kOp, "grad_output", grad_output);
  check_same_device(kOp, device_of(self), "grad_output", grad_output);
  npu_dtype ours = dtype_of(self), theirs = dtype_of(grad_output);
  if (ours == theirs && same_sizes(grad_output.sizes(), self.sizes())) {
    return differentiate("npu::npu_gelu_backward", grad_output, self, std::nullopt, kind);
  }
  std::vector<int64_t> together = broadcast_sizes(kOp, grad_output.sizes(), self.sizes());
  Sizes sizes(together.data(), together.size());
  // As torch promotes: a tensor without dims does not count beside one with dims; float16 with bfloat16 is float32.
  npu_dtype dtype = ours == theirs ? ours : static_cast<npu_dtype>(NPU_FLOAT32);
  if (grad_output.dim() == 0 && self.dim() > 0) dtype = ours;
  if (self.dim() == 0 && grad_output.dim() > 0) dtype = theirs;
  return differentiate("npu::npu_gelu_backward", broadcast_as(grad_output, sizes, dtype),
                       as_contiguous(broadcast_as(self, sizes, dtype)), std::nullopt, kind);
}

// ---- silu ----------------------------------------------------------------------------------------------------------

Tensor silu(const Tensor& self) {
  static std::atomic<bool> warned{false};
  warn_deprecated_once(warned, "npu_silu", " Use torch.nn.functional.silu instead.");
  return activate("npu_silu", "npu::npu_silu", self, ACTIVATION_SILU);
}

Tensor silu_backward(const Tensor& grad_output, const Tensor& x0, const Tensor& x1) {
  constexpr const char* kOp = "npu_silu_backward";
  check_floating(kOp, "x0", x0);
  check_like(kOp, "grad_output", grad_output, "x0", x0);
  check_like(kOp, "x1", x1, "x0", x0);
  return differentiate("npu::npu_silu_backward", grad_output, x0, x1, ACTIVATION_SILU);
}

struct InPlaceTask {
  const ActivationKernels* kernels;
  ActivationInPlace work;
  int64_t rows;
};

npu_status run_in_place(void* payload, npu_error* error) {
  const auto& task = *static_cast<const InPlaceTask*>(payload);
  auto rows = [&](int64_t begin, int64_t end) { task.kernels->in_place(&task.work, begin, end); };
  return parallel_for(task.rows, grain_for(task.work.columns), rows, error);
}

/// The view as rows of its longest dim among those with the smallest stride; any order of rows will do.
InPlaceTask in_place_task(const Tensor& self, npu_dtype dtype) {
  Sizes sizes = self.sizes(), strides = self.strides();
  std::vector<size_t> order;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 1) continue;
    NPU_CHECK_ARG(strides[d] != 0, "npu_silu_", "self",
                  "more than one element refers to a single memory location (an expanded tensor of shape ",
                  shape_text(sizes), "); clone() it before writing in place");
    order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return strides[a] > strides[b]; });
  InPlaceTask task{&kTables.active(), {{}, 1, 1, dtype, ACTIVATION_SILU}, 1};
  npu_strided& view = task.work.rows;
  view.data = self.data_ptr();
  if (order.empty()) return task;
  task.work.columns = sizes[order.back()];
  task.work.step = strides[order.back()];
  order.pop_back();
  while (!order.empty() && strides[order.back()] == task.work.step * task.work.columns) {
    task.work.columns *= sizes[order.back()];
    order.pop_back();
  }
  for (size_t d : order) {
    task.rows *= sizes[d];
    if (view.dims > 0 && view.strides[view.dims - 1] == strides[d] * sizes[d]) {
      view.sizes[view.dims - 1] *= sizes[d];
      view.strides[view.dims - 1] = strides[d];
      continue;
    }
    NPU_CHECK_ARG(view.dims < NPU_MAX_DIMS, "npu_silu_", "self",
                  "expected a tensor whose strides can be merged to at most ", NPU_MAX_DIMS + 1,
                  " dims; use npu_silu and copy_");
    view.sizes[view.dims] = sizes[d];
    view.strides[view.dims++] = strides[d];
  }
  return task;
}

void silu_in_place(const Tensor& self) {
  check_floating("npu_silu_", "self", self);
  if (self.numel() == 0) return;
  Device device = device_of(self);
  npu_dtype dtype = dtype_of(self);
  if (is_dense(self)) {
    ForwardTask task{
        &kTables.active(), {self.data_ptr(), self.data_ptr(), dtype, ACTIVATION_SILU, bytes_of(self)}, self.numel()};
    launch(device, "npu::npu_silu_", run_forward, task, {reads(self), writes(self)});
    return;
  }
  launch(device, "npu::npu_silu_", run_in_place, in_place_task(self, dtype), {reads(self), writes(self)});
}

Tensor silu_(Tensor self) {
  call_operator("npu::_npu_silu_", self);
  return self;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("npu_fast_gelu(Tensor self) -> Tensor");
  m.def("fast_gelu(Tensor self) -> Tensor");
  m.def("npu_fast_gelu_backward(Tensor grad, Tensor self) -> Tensor");
  m.def("npu_gelu(Tensor self, *, str approximate='none') -> Tensor");
  m.def("npu_gelu_backward(Tensor grad_output, Tensor self, *, str approximate='none') -> Tensor");
  m.def("npu_silu(Tensor self) -> Tensor");
  m.def("npu_silu_(Tensor(a!) self) -> Tensor(a!)");
  m.def("_npu_silu_(Tensor(a!) self) -> ()");
  m.def("npu_silu_backward(Tensor grad_output, Tensor x0, Tensor x1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_fast_gelu", TORCH_BOX(&npu_fast_gelu));
  m.impl("fast_gelu", TORCH_BOX(&fast_gelu));
  m.impl("npu_fast_gelu_backward", TORCH_BOX(&fast_gelu_backward));
  m.impl("npu_gelu", TORCH_BOX(&gelu));
  m.impl("npu_gelu_backward", TORCH_BOX(&gelu_backward));
  m.impl("npu_silu", TORCH_BOX(&silu));
  m.impl("_npu_silu_", TORCH_BOX(&silu_in_place));
  m.impl("npu_silu_backward", TORCH_BOX(&silu_backward));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_fast_gelu", TORCH_BOX(&npu_fast_gelu));
  m.impl("fast_gelu", TORCH_BOX(&fast_gelu));
  m.impl("npu_fast_gelu_backward", TORCH_BOX(&fast_gelu_backward));
  m.impl("npu_gelu", TORCH_BOX(&gelu));
  m.impl("npu_gelu_backward", TORCH_BOX(&gelu_backward));
  m.impl("npu_silu", TORCH_BOX(&silu));
  m.impl("_npu_silu_", TORCH_BOX(&silu_in_place));
  m.impl("npu_silu_backward", TORCH_BOX(&silu_backward));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CompositeImplicitAutograd, m) { m.impl("npu_silu_", TORCH_BOX(&silu_)); }

}  // namespace npu::ops_llm
