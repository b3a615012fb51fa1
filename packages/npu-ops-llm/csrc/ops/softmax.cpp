// Scaled masked softmax, and softmax of a sum with dropout: checks and tasks.  The public operators take Scalar
// arguments, which the stable interface cannot, so their kernels are in src/npu_ops_llm/softmax.py and call these.
#include "../kernels/softmax.h"

#include <cmath>
#include <tuple>

#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/strided_tensor.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<SoftmaxKernels> kTables = {{
    &softmax_kernels_base,
#if defined(__x86_64__)
    &softmax_kernels_avx2,
    &softmax_kernels_avx512,
    &softmax_kernels_avx512_bf16,
#endif
}};

struct Rows {
  int64_t rows, columns;  // all dims but the last, the last
};

Rows check_rows(const char* op, const char* argument, const Tensor& tensor) {
  check_dtype(op, argument, tensor, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  Sizes sizes = tensor.sizes();
  NPU_CHECK_ARG(!sizes.empty(), op, argument, "expected at least 1 dim, got a tensor without dims");
  return {count_of(Sizes(sizes.data(), sizes.size() - 1)), sizes[sizes.size() - 1]};
}

void check_like(const char* op, const char* argument, const Tensor& tensor, const char* model_name,
                const Tensor& model) {
  check_same_device(op, device_of(model), argument, tensor);
  NPU_CHECK_ARG(dtype_of(tensor) == dtype_of(model), op, argument, "expected dtype ", npu_dtype_name(dtype_of(model)),
                " (as ", model_name, "), got ", npu_dtype_name(dtype_of(tensor)));
  NPU_CHECK_ARG(same_sizes(tensor.sizes(), model.sizes()), op, argument, "expected shape ", shape_text(model.sizes()),
                " (as ", model_name, "), got ", shape_text(tensor.sizes()));
}

/// What a task reads of a tensor that may be a view or broadcast.
npu_access reads_view(const Tensor& tensor) {
  auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t extent = 1;
  for (size_t d = 0; d < sizes.size(); ++d) extent += (sizes[d] - 1) * strides[d];
  if (tensor.numel() == 0) extent = 0;
  return {tensor.data_ptr(), static_cast<size_t>(extent * static_cast<int64_t>(tensor.element_size())), 0, 0};
}

// ---- scaled masked softmax --------------------------------------------------------------------------------------

void check_mask(const char* op, const Tensor& mask, const char* model_name, const Tensor& model) {
  check_same_device(op, device_of(model), "mask", mask);
  check_dtype(op, "mask", mask, {NPU_BOOL});
  Sizes sizes = model.sizes(), own = mask.sizes();
  bool fits = own.size() <= sizes.size();
  for (size_t d = 0; fits && d < own.size(); ++d) {
    int64_t size = sizes[sizes.size() - own.size() + d];
    fits = own[d] == size || own[d] == 1;
  }
  NPU_CHECK_ARG(fits, op, "mask", "expected a shape that broadcasts to ", shape_text(sizes), " (the shape of ",
                model_name, "), got ", shape_text(own));
}

/// A mask whose rows are one byte or contiguous bytes, and can be listed: the tensor itself but for rare strides.
Tensor rows_of_bytes(const Tensor& mask, Sizes model) {
  auto sizes = mask.sizes(), strides = mask.strides();
  bool one = sizes.empty() || sizes.back() == 1 || strides.back() == 0;
  Tensor rows = one || strides.back() == 1 ? mask : as_contiguous(mask);
  if (rows_can_be_listed(rows, Sizes(model.data(), model.size() - 1), 1)) return rows;
  Tensor whole = allocate(model, NPU_BOOL, device_of(mask));
  torch::stable::copy_(whole, mask);
  return whole;
}

SoftmaxMaskView view_of_mask(const Tensor& mask, Sizes sizes, bool fixed_triu_mask) {
  SoftmaxMaskView view{};
  if (fixed_triu_mask) {
    view.kind = SOFTMAX_MASK_UPPER;
    view.height = sizes.size() > 1 ? sizes[sizes.size() - 2] : 1;
    return view;
  }
  view.rows = rows_of(mask, Sizes(sizes.data(), sizes.size() - 1), 1);
  bool one = mask.dim() == 0 || mask.sizes().back() == 1 || mask.strides().back() == 0;
  view.kind = one ? SOFTMAX_MASK_ROW : SOFTMAX_MASK_BYTES;
  return view;
}

struct ForwardTask {
  const SoftmaxKernels* kernels;
  ScaledMaskedSoftmax work;
};

npu_status run_forward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const ForwardTask*>(payload);
  auto rows = [&](int64_t begin, int64_t end) { task.kernels->scaled_masked(&task.work, begin, end); };
  return parallel_for(task.work.rows, grain_for(task.work.columns), rows, error);
}

Tensor scaled_masked_softmax(const Tensor& x, const Tensor& mask, double scale, bool fixed_triu_mask) {
  constexpr const char* kOp = "npu_scaled_masked_softmax";
  Rows rows = check_rows(kOp, "x", x);
  if (!fixed_triu_mask) check_mask(kOp, mask, "x", x);
  Device device = device_of(x);
  npu_dtype dtype = dtype_of(x);
  Tensor input = with_contiguous_rows(x);
  Tensor bytes = fixed_triu_mask ? mask : rows_of_bytes(mask, x.sizes());
  Tensor y = allocate(x.sizes(), dtype, device);
  if (rows.rows > 0 && rows.columns > 0) {
    ForwardTask task{&kTables.active(),
                     {rows_of(input, Sizes(x.sizes().data(), x.sizes().size() - 1), 1),
                      view_of_mask(bytes, x.sizes(), fixed_triu_mask), y.data_ptr(), rows.rows, rows.columns,
                      static_cast<float>(scale), dtype}};
    npu_access masks = fixed_triu_mask ? npu_access{nullptr, 0, 0, 0} : reads_view(bytes);
    launch(device, "npu::npu_scaled_masked_softmax", run_forward, task, {reads_view(input), masks, writes(y)});
  }
  return y;
}

struct BackwardTask {
  const SoftmaxKernels* kernels;
  ScaledMaskedSoftmaxBackward work;
};

npu_status run_backward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const BackwardTask*>(payload);
  auto rows = [&](int64_t begin, int64_t end) { task.kernels->scaled_masked_backward(&task.work, begin, end); };
  return parallel_for(task.work.rows, grain_for(task.work.columns), rows, error);
}

Tensor scaled_masked_softmax_backward(const Tensor& y_grad, const Tensor& y, const Tensor& mask, double scale,
                                      bool fixed_triu_mask) {
  constexpr const char* kOp = "npu_scaled_masked_softmax_backward";
  Rows rows = check_rows(kOp, "y_grad", y_grad);
  check_like(kOp, "y", y, "y_grad", y_grad);
  if (!fixed_triu_mask) check_mask(kOp, mask, "y_grad", y_grad);
  Device device = device_of(y_grad);
  npu_dtype dtype = dtype_of(y_grad);
  Tensor upstream = as_contiguous(y_grad), probabilities = as_contiguous(y);
  Tensor bytes = fixed_triu_mask ? mask : rows_of_bytes(mask, y_grad.sizes());
  Tensor x_grad = allocate(y_grad.sizes(), dtype, device);
  if (rows.rows > 0 && rows.columns > 0) {
    BackwardTask task{
        &kTables.active(),
        {upstream.data_ptr(), probabilities.data_ptr(), view_of_mask(bytes, y_grad.sizes(), fixed_triu_mask),
         x_grad.data_ptr(), rows.rows, rows.columns, static_cast<float>(scale), dtype}};
    npu_access masks = fixed_triu_mask ? npu_access{nullptr, 0, 0, 0} : reads_view(bytes);
    launch(device, "npu::npu_scaled_masked_softmax_backward", run_backward, task,
           {reads(upstream), reads(probabilities), masks, writes(x_grad)});
  }
  return x_grad;
}

// ---- softmax(x1 + alpha * self) with dropout, over the last dim ---------------------------------------------------

void check_probability(const char* op, double prob) {
  NPU_CHECK_ARG(prob >= 0 && prob < 1, op, "prob", "expected a probability of dropping in [0, 1), got ", prob);
}

/// Bytes of the mask: one per element, padded to the 128 of a vector of the hardware.
int64_t mask_bytes(int64_t elements) { return (elements + 127) / 128 * 128; }

struct DropoutTask {
  const SoftmaxKernels* kernels;
  DropoutAddSoftmax work;
};

npu_status run_dropout(void* payload, npu_error* error) {
  const auto& task = *static_cast<const DropoutTask*>(payload);
  const DropoutAddSoftmax& work = task.work;
  int64_t elements = work.rows * work.columns;
  std::memset(work.keep + elements, 0, static_cast<size_t>(mask_bytes(elements) - elements));
  auto rows = [&](int64_t begin, int64_t end) { task.kernels->dropout_add(&work, begin, end); };
  return parallel_for(work.rows, grain_for(work.columns), rows, error);
}

/// `cpu_seed` is the Philox key for CPU tensors; npu tensors draw from their device's default generator.
std::tuple<Tensor, Tensor, Tensor> dropout_with_add_softmax(const Tensor& self, const Tensor& x1, double alpha,
                                                            double prob, int64_t cpu_seed) {
  constexpr const char* kOp = "npu_dropout_with_add_softmax";
  Rows rows = check_rows(kOp, "self", self);
  check_like(kOp, "x1", x1, "self", self);
  check_probability(kOp, prob);
  Device device = device_of(self);
  npu_dtype dtype = dtype_of(self);
  Tensor scores = as_contiguous(self), addend = as_contiguous(x1);
  int64_t elements = rows.rows * rows.columns, bytes = mask_bytes(elements);
  Tensor mask = allocate(Sizes(&bytes, 1), NPU_UINT8, device);
  Tensor softmax = allocate(self.sizes(), dtype, device), out = allocate(self.sizes(), dtype, device);
  if (elements > 0) {
    uint64_t seed = static_cast<uint64_t>(cpu_seed), offset = 0;
    if (const npu_runtime_api* runtime = device.is_cpu() ? nullptr : npu_runtime()) {
      uint64_t words = static_cast<uint64_t>((elements + 63) / 64 * 64);  // they come in blocks of 64
      npu_status status = runtime->philox_reserve(device.index, words, &seed, &offset);
      if (status != NPU_OK) raise_status(status, text(kOp, ": no random numbers: ", runtime->last_error()));
    }
    auto threshold = static_cast<uint64_t>(std::nearbyint((1.0 - prob) * 0x1p32));
    DropoutTask task{&kTables.active(),
                     {scores.data_ptr(), addend.data_ptr(), static_cast<uint8_t*>(mask.data_ptr()), softmax.data_ptr(),
                      out.data_ptr(), rows.rows, rows.columns, seed, offset, threshold, static_cast<float>(alpha),
                      static_cast<float>(1.0 / (1.0 - prob)), dtype}};
    launch(device, "npu::npu_dropout_with_add_softmax", run_dropout, task,
           {reads(scores), reads(addend), writes(mask), writes(softmax), writes(out)});
  }
  return {mask, softmax, out};
}

struct DropoutBackwardTask {
  const SoftmaxKernels* kernels;
  DropoutAddSoftmaxBackward work;
};

npu_status run_dropout_backward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const DropoutBackwardTask*>(payload);
  auto rows = [&](int64_t begin, int64_t end) { task.kernels->dropout_add_backward(&task.work, begin, end); };
  return parallel_for(task.work.rows, grain_for(task.work.columns), rows, error);
}

std::tuple<Tensor, Tensor> dropout_with_add_softmax_backward(const Tensor& grad, const Tensor& mask,
                                                             const Tensor& softmax_out, double alpha, double prob) {
  constexpr const char* kOp = "npu_dropout_with_add_softmax_backward";
  Rows rows = check_rows(kOp, "grad", grad);
  check_like(kOp, "softmax_out", softmax_out, "grad", grad);
  Device device = device_of(grad);
  check_same_device(kOp, device, "mask", mask);
  check_dtype(kOp, "mask", mask, {NPU_UINT8});
  check_probability(kOp, prob);
  int64_t elements = rows.rows * rows.columns, bytes = mask_bytes(elements);
  check_sizes(kOp, "mask", mask, Sizes(&bytes, 1), "(the first output of npu_dropout_with_add_softmax)");
  npu_dtype dtype = dtype_of(grad);
  Tensor upstream = as_contiguous(grad), keep = as_contiguous(mask), softmax = as_contiguous(softmax_out);
  Tensor self_grad = allocate(grad.sizes(), dtype, device), x1_grad = allocate(grad.sizes(), dtype, device);
  if (elements > 0) {
    DropoutBackwardTask task{&kTables.active(),
                             {upstream.data_ptr(), static_cast<const uint8_t*>(keep.data_ptr()), softmax.data_ptr(),
                              self_grad.data_ptr(), x1_grad.data_ptr(), rows.rows, rows.columns,
                              static_cast<float>(alpha), static_cast<float>(1.0 / (1.0 - prob)), dtype}};
    launch(device, "npu::npu_dropout_with_add_softmax_backward", run_dropout_backward, task,
           {reads(upstream), reads(keep), reads(softmax), writes(self_grad), writes(x1_grad)});
  }
  return {self_grad, x1_grad};
}

}  // namespace

// npu_dropout_with_add_softmax is defined in Python, because a tag cannot be given here before torch 2.13.
STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("npu_scaled_masked_softmax(Tensor x, Tensor mask, Scalar scale=1, bool fixed_triu_mask=False) -> Tensor");
  m.def(
      "npu_scaled_masked_softmax_backward(Tensor y_grad, Tensor y, Tensor mask, Scalar scale, bool fixed_triu_mask) -> "
      "Tensor");
  m.def(
      "npu_dropout_with_add_softmax_backward(Tensor grad, Tensor mask, Tensor softmax_out, Scalar alpha, float prob, "
      "int dim) -> (Tensor, Tensor)");
  m.def("_npu_scaled_masked_softmax(Tensor x, Tensor mask, float scale, bool fixed_triu_mask) -> Tensor");
  m.def(
      "_npu_scaled_masked_softmax_backward(Tensor y_grad, Tensor y, Tensor mask, float scale, bool fixed_triu_mask) -> "
      "Tensor");
  m.def(
      "_npu_dropout_with_add_softmax(Tensor self, Tensor x1, float alpha, float prob, int cpu_seed) -> (Tensor, "
      "Tensor, Tensor)");
  m.def(
      "_npu_dropout_with_add_softmax_backward(Tensor grad, Tensor mask, Tensor softmax_out, float alpha, float prob) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("_npu_scaled_masked_softmax", TORCH_BOX(&scaled_masked_softmax));
  m.impl("_npu_scaled_masked_softmax_backward", TORCH_BOX(&scaled_masked_softmax_backward));
  m.impl("_npu_dropout_with_add_softmax", TORCH_BOX(&dropout_with_add_softmax));
  m.impl("_npu_dropout_with_add_softmax_backward", TORCH_BOX(&dropout_with_add_softmax_backward));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("_npu_scaled_masked_softmax", TORCH_BOX(&scaled_masked_softmax));
  m.impl("_npu_scaled_masked_softmax_backward", TORCH_BOX(&scaled_masked_softmax_backward));
  m.impl("_npu_dropout_with_add_softmax", TORCH_BOX(&dropout_with_add_softmax));
  m.impl("_npu_dropout_with_add_softmax_backward", TORCH_BOX(&dropout_with_add_softmax_backward));
}

}  // namespace npu::ops_llm
