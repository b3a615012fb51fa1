// npu_rms_norm, its backward and npu_gemma_rms_norm: schemas, checks and tasks.  Fake and autograd:
// src/npu_ops_llm/rms_norm.py.
#include <algorithm>
#include <tuple>
#include <vector>

#include "../kernels/rms_norm.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/stable_tensor.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<RmsNormKernels> kTables = {{
    &rms_norm_kernels_base,
#if defined(__x86_64__)
    &rms_norm_kernels_avx2,
    &rms_norm_kernels_avx512,
    &rms_norm_kernels_avx512_bf16,
#endif
}};

struct Shape {
  int64_t rows, columns;      // product of the leading sizes and of gamma's
  std::vector<int64_t> rstd;  // the leading sizes, then a 1 for each of gamma's dims
};

Shape check_self_and_gamma(const char* op, const Tensor& self, const Tensor& gamma) {
  Device device = device_of(self);
  check_same_device(op, device, "gamma", gamma);
  npu_dtype dtype = dtype_of(self), gamma_dtype = dtype_of(gamma);
  NPU_CHECK_ARG(dtype == NPU_FLOAT16 || dtype == NPU_BFLOAT16 || dtype == NPU_FLOAT32, op, "self",
                "expected dtype float16, bfloat16 or float32, got ", npu_dtype_name(dtype), "; convert it first");
  NPU_CHECK_ARG(gamma_dtype == dtype || gamma_dtype == NPU_FLOAT32, op, "gamma", "expected dtype ",
                npu_dtype_name(dtype), " (as self) or float32, got ", npu_dtype_name(gamma_dtype),
                "; convert it first");
  Sizes sizes = self.sizes(), gamma_sizes = gamma.sizes();
  NPU_CHECK_ARG(gamma_sizes.size() <= sizes.size(), op, "gamma",
                "The gamma shape should not be bigger than self shape. self has shape ", shape_text(sizes),
                ", gamma has shape ", shape_text(gamma_sizes));
  size_t leading = sizes.size() - gamma_sizes.size();
  Shape shape{1, 1, std::vector<int64_t>(sizes.size(), 1)};
  for (size_t i = 0; i < leading; ++i) shape.rows *= shape.rstd[i] = sizes[i];
  for (size_t i = 0; i < gamma_sizes.size(); ++i) {
    NPU_CHECK_ARG(gamma_sizes[i] == sizes[leading + i], op, "gamma",
                  "expected the shape of self's last dims; self has shape ", shape_text(sizes), ", gamma has shape ",
                  shape_text(gamma_sizes));
    shape.columns *= gamma_sizes[i];
  }
  return shape;
}

struct ForwardTask {
  const RmsNormKernels* kernels;
  RmsNormForward work;
};

npu_status run_forward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const ForwardTask*>(payload);
  auto rows = [&](int64_t begin, int64_t end) { task.kernels->forward(&task.work, begin, end); };
  return parallel_for(task.work.rows, grain_for(task.work.columns), rows, error);
}

std::tuple<Tensor, Tensor> forward(const char* op, const char* task_name, const Tensor& self, const Tensor& gamma,
                                   double epsilon, float gamma_offset) {
  Shape shape = check_self_and_gamma(op, self, gamma);
  Device device = device_of(self);
  npu_dtype dtype = dtype_of(self);
  Tensor x = as_contiguous(self), scale = as_contiguous(gamma);
  Tensor y = allocate(self.sizes(), dtype, device);
  Tensor rstd = allocate(Sizes(shape.rstd.data(), shape.rstd.size()), NPU_FLOAT32, device);
  if (shape.rows > 0) {
    ForwardTask task{&kTables.active(),
                     {x.data_ptr(), scale.data_ptr(), y.data_ptr(), static_cast<float*>(rstd.data_ptr()), shape.rows,
                      shape.columns, static_cast<float>(epsilon), gamma_offset, dtype, dtype_of(gamma)}};
    launch(device, task_name, run_forward, task, {reads(x), reads(scale), writes(y), writes(rstd)});
  }
  return {y, rstd};
}

std::tuple<Tensor, Tensor> rms_norm(const Tensor& self, const Tensor& gamma, double epsilon) {
  return forward("npu_rms_norm", "npu::npu_rms_norm", self, gamma, epsilon, 0);
}

std::tuple<Tensor, Tensor> gemma_rms_norm(const Tensor& self, const Tensor& gamma, double epsilon) {
  return forward("npu_gemma_rms_norm", "npu::npu_gemma_rms_norm", self, gamma, epsilon, 1);
}

struct BackwardTask {
  const RmsNormKernels* kernels;
  RmsNormBackward work;
};

npu_status run_backward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const BackwardTask*>(payload);
  const RmsNormBackward& work = task.work;
  auto blocks = [&](int64_t begin, int64_t end) { task.kernels->backward(&work, begin, end); };
  int64_t rows_per_block = work.blocks > 0 ? (work.rows + work.blocks - 1) / work.blocks : 1;
  npu_status status = parallel_for(work.blocks, grain_for(work.columns * rows_per_block), blocks, error);
  if (status != NPU_OK) return status;
  auto columns = [&](int64_t begin, int64_t end) { task.kernels->sum_partials(&work, begin, end); };
  return parallel_for(work.columns, grain_for(work.blocks), columns, error);
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& dy, const Tensor& self, const Tensor& gamma,
                                             const Tensor& rstd) {
  constexpr const char* kOp = "npu_rms_norm_backward";
  Shape shape = check_self_and_gamma(kOp, self, gamma);
  Device device = device_of(self);
  npu_dtype dtype = dtype_of(self);
  check_same_device(kOp, device, "dy", dy);
  check_same_device(kOp, device, "rstd", rstd);
  NPU_CHECK_ARG(dtype_of(dy) == dtype, kOp, "dy", "expected dtype ", npu_dtype_name(dtype), " (as self), got ",
                npu_dtype_name(dtype_of(dy)));
  NPU_CHECK_ARG(dtype_of(rstd) == NPU_FLOAT32, kOp, "rstd", "expected dtype float32, got ",
                npu_dtype_name(dtype_of(rstd)), "; pass the second output of npu_rms_norm");
  NPU_CHECK_ARG(same_sizes(dy.sizes(), self.sizes()), kOp, "dy", "expected shape ", shape_text(self.sizes()),
                " (as self), got ", shape_text(dy.sizes()));
  Sizes rstd_sizes(shape.rstd.data(), shape.rstd.size());
  NPU_CHECK_ARG(same_sizes(rstd.sizes(), rstd_sizes), kOp, "rstd", "expected shape ", shape_text(rstd_sizes), ", got ",
                shape_text(rstd.sizes()), "; pass the second output of npu_rms_norm");

  // Enough blocks for any team, few enough that their sums cost little beside the rows.
  int64_t blocks = std::clamp<int64_t>(shape.rows / 16, 1, 64);
  if (shape.rows == 0) blocks = 0;  // dgamma is then a sum over nothing
  Tensor upstream = as_contiguous(dy), x = as_contiguous(self), scale = as_contiguous(gamma),
         scales = as_contiguous(rstd);
  Tensor dx = allocate(self.sizes(), dtype, device);
  Tensor dgamma = allocate(gamma.sizes(), NPU_FLOAT32, device);
  int64_t partial_sizes[] = {blocks, shape.columns};
  Tensor partials = allocate(Sizes(partial_sizes, 2), NPU_FLOAT32, device);
  if (shape.columns > 0) {
    BackwardTask task{
        &kTables.active(),
        {upstream.data_ptr(), x.data_ptr(), scale.data_ptr(), static_cast<const float*>(scales.data_ptr()),
         dx.data_ptr(), static_cast<float*>(partials.data_ptr()), static_cast<float*>(dgamma.data_ptr()), shape.rows,
         shape.columns, blocks, dtype, dtype_of(gamma)}};
    launch(device, "npu::npu_rms_norm_backward", run_backward, task,
           {reads(upstream), reads(x), reads(scale), reads(scales), writes(dx), writes(partials), writes(dgamma)});
  }
  return {dx, dgamma};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("npu_rms_norm(Tensor self, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)");
  m.def("npu_gemma_rms_norm(Tensor self, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)");
  m.def("npu_rms_norm_backward(Tensor dy, Tensor self, Tensor gamma, Tensor rstd) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_rms_norm", TORCH_BOX(&rms_norm));
  m.impl("npu_gemma_rms_norm", TORCH_BOX(&gemma_rms_norm));
  m.impl("npu_rms_norm_backward", TORCH_BOX(&rms_norm_backward));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_rms_norm", TORCH_BOX(&rms_norm));
  m.impl("npu_gemma_rms_norm", TORCH_BOX(&gemma_rms_norm));
  m.impl("npu_rms_norm_backward", TORCH_BOX(&rms_norm_backward));
}

}  // namespace npu::ops_llm
