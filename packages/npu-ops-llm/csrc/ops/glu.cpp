// npu_swiglu, its gradient and npu_gelu_mul: schemas, checks and tasks.  Fakes and autograd: src/npu_ops_llm/swiglu.py
// and activation.py.
#include "../kernels/glu.h"

#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/stable_tensor.h"
#include "npu/kernels/strided_tensor.h"
#include "npu/kernels/strings.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<GluKernels> kTables = {{
    &glu_kernels_base,
#if defined(__x86_64__)
    &glu_kernels_avx2,
    &glu_kernels_avx512,
    &glu_kernels_avx512_bf16,
#endif
}};

/// Sizes with the split dim halved, and the two counts a kernel needs.
struct Split {
  int64_t dim;                 // counted from 0
  int64_t rows, columns;       // of a half: product of the sizes before dim, and of the halved dim and those after it
  std::vector<int64_t> sizes;  // of a half

  Sizes half() const { return Sizes(sizes.data(), sizes.size()); }
  Sizes leading() const { return Sizes(sizes.data(), static_cast<size_t>(dim)); }
  int64_t row_dims() const { return static_cast<int64_t>(sizes.size()) - dim; }
};

Split split(const char* op, const char* argument, const Tensor& self, int64_t dim) {
  check_dtype(op, argument, self, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  Sizes sizes = self.sizes();
  int64_t rank = static_cast<int64_t>(sizes.size());
  NPU_CHECK_ARG(dim >= -rank && dim < rank, op, "dim", "dim out of range: expected at least ", -rank, " and less than ",
                rank, ", got ", dim);
  if (dim < 0) dim += rank;
  NPU_CHECK_ARG(sizes[dim] % 2 == 0, op, argument, "expected an even size of dim ", dim, ", got shape ",
                shape_text(sizes));
  Split result{dim, 1, 1, std::vector<int64_t>(sizes.begin(), sizes.end())};
  result.sizes[dim] /= 2;
  for (int64_t d = 0; d < dim; ++d) result.rows *= sizes[d];
  for (int64_t d = dim; d < rank; ++d) result.columns *= result.sizes[d];
  return result;
}

struct ForwardTask {
  const GluKernels* kernels;
  GluForward work;
  int64_t count;
};

npu_status run_forward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const ForwardTask*>(payload);
  auto part = [&](int64_t begin, int64_t end) { task.kernels->forward(&task.work, begin, end); };
  return parallel_for(task.count, grain_for(1), part, error);
}

Tensor glu(const char* name, const Tensor& self, const Split& split, int32_t kind) {
  Device device = device_of(self);
  npu_dtype dtype = dtype_of(self);
  Tensor y = allocate(split.half(), dtype, device);
  int64_t count = split.rows * split.columns;
  if (count == 0) return y;
  Tensor x = with_contiguous_rows(self, split.row_dims());
  ForwardTask task{
      &kTables.active(),
      {rows_of(x, split.leading(), split.row_dims()), y.data_ptr(), split.columns, dtype, kind, 3 * bytes_of(y)},
      count};
  launch(device, name, run_forward, task, {reads(x), writes(y)});
  return y;
}

Tensor swiglu(const Tensor& self, int64_t dim) {
  return glu("npu::npu_swiglu", self, split("npu_swiglu", "self", self, dim), GLU_SILU);
}

Tensor gelu_mul(const Tensor& input, String approximate) {
  constexpr const char* kOp = "npu_gelu_mul";
  bool none = approximate == "none";
  NPU_CHECK_ARG(none || approximate == "tanh", kOp, "approximate",
                "approximate argument must be either none or tanh, got '", approximate.value, "'");
  NPU_CHECK_ARG(input.dim() >= 2, kOp, "input", "expected at least 2 dims, got shape ", shape_text(input.sizes()));
  return glu("npu::npu_gelu_mul", input, split(kOp, "input", input, -1), none ? GLU_GELU : GLU_GELU_TANH);
}

struct BackwardTask {
  const GluKernels* kernels;
  GluBackward work;
  int64_t count;
};

npu_status run_backward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const BackwardTask*>(payload);
  auto part = [&](int64_t begin, int64_t end) { task.kernels->backward(&task.work, begin, end); };
  return parallel_for(task.count, grain_for(2), part, error);
}

Tensor swiglu_backward(const Tensor& grad_output, const Tensor& self, int64_t dim) {
  constexpr const char* kOp = "npu_swiglu_backward";
  Split halves = split(kOp, "self", self, dim);
  Device device = device_of(self);
  npu_dtype dtype = dtype_of(self);
  check_same_device(kOp, device, "grad_output", grad_output);
  NPU_CHECK_ARG(dtype_of(grad_output) == dtype, kOp, "grad_output", "expected dtype ", npu_dtype_name(dtype),
                " (as self), got ", npu_dtype_name(dtype_of(grad_output)), "; convert it first");
  check_sizes(kOp, "grad_output", grad_output, halves.half(), "(of npu_swiglu's result)");
  Tensor dx = allocate(self.sizes(), dtype, device);
  int64_t count = halves.rows * halves.columns;
  if (count == 0) return dx;
  Tensor dy = with_contiguous_rows(grad_output, halves.row_dims()), x = with_contiguous_rows(self, halves.row_dims());
  BackwardTask task{&kTables.active(),
                    {rows_of(dy, halves.leading(), halves.row_dims()), rows_of(x, halves.leading(), halves.row_dims()),
                     dx.data_ptr(), halves.columns, dtype, 5 * bytes_of(dy)},
                    count};
  launch(device, "npu::npu_swiglu_backward", run_backward, task, {reads(dy), reads(x), writes(dx)});
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("npu_gelu_mul(Tensor input, *, str approximate='none') -> Tensor");
  m.def("npu_swiglu(Tensor self, int dim=-1) -> Tensor");
  m.def("npu_swiglu_backward(Tensor grad_output, Tensor self, int dim=-1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_gelu_mul", TORCH_BOX(&gelu_mul));
  m.impl("npu_swiglu", TORCH_BOX(&swiglu));
  m.impl("npu_swiglu_backward", TORCH_BOX(&swiglu_backward));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_gelu_mul", TORCH_BOX(&gelu_mul));
  m.impl("npu_swiglu", TORCH_BOX(&swiglu));
  m.impl("npu_swiglu_backward", TORCH_BOX(&swiglu_backward));
}

}  // namespace npu::ops_llm
