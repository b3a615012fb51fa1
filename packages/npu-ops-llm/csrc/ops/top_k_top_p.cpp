// npu_top_k_top_p: schema, checks and task.  Fake: src/npu_ops_llm/top_k_top_p.py.
#include <algorithm>

#include "../kernels/top_k_top_p.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/strided_tensor.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<TopKTopPKernels> kTables = {{
    &top_k_top_p_kernels_base,
#if defined(__x86_64__)
    &top_k_top_p_kernels_avx2,
    &top_k_top_p_kernels_avx512,
    &top_k_top_p_kernels_avx512_bf16,
#endif
}};

struct Task {
  const TopKTopPKernels* kernels;
  TopKTopP work;
};

npu_status run(void* payload, npu_error* error) {
  const auto& task = *static_cast<const Task*>(payload);
  const TopKTopP& work = task.work;
  auto parts = [&](int64_t begin, int64_t end) { task.kernels->filter(&work, begin, end); };
  return parallel_for(work.parts, grain_for(work.columns * (work.rows / work.parts)), parts, error);
}

Tensor top_k_top_p(const Tensor& logits, const OptionalTensor& p, const OptionalTensor& k) {
  constexpr const char* kOp = "npu_top_k_top_p";
  Device device = device_of(logits);
  check_same_device(kOp, device, "p", p);
  check_same_device(kOp, device, "k", k);
  check_dtype(kOp, "logits", logits, {NPU_FLOAT32, NPU_FLOAT16, NPU_BFLOAT16});
  Sizes sizes = logits.sizes();
  NPU_CHECK_ARG(sizes.size() == 2, kOp, "logits", "expected shape [batch, vocabulary], got shape ", shape_text(sizes));
  OptionalTensor ps, ks;
  TopKTopP work{};
  if (p.has_value()) {
    check_dtype(kOp, "p", *p, {NPU_FLOAT32, NPU_FLOAT16, NPU_BFLOAT16});
    check_sizes(kOp, "p", *p, Sizes(sizes.data(), 1), "(one for each row of logits)");
    ps = as_contiguous(*p);
    work.p = ps->data_ptr();
    work.p_dtype = dtype_of(*ps);
  }
  if (k.has_value()) {
    check_dtype(kOp, "k", *k, {NPU_INT32, NPU_INT64});
    check_sizes(kOp, "k", *k, Sizes(sizes.data(), 1), "(one for each row of logits)");
    ks = as_contiguous(*k);
    work.k = ks->data_ptr();
    work.k_dtype = dtype_of(*ks);
  }
  Tensor x = rows_are_contiguous(logits, 1) ? logits : as_contiguous(logits);
  Tensor y = allocate(sizes, dtype_of(logits), device);
  if (y.numel() == 0) return y;
  const TopKTopPKernels& kernels = kTables.active();
  // A part for every thread; the results do not depend on the number.
  work.rows = sizes[0];
  work.columns = sizes[1];
  work.parts = std::min<int64_t>(work.rows, torch::stable::get_num_threads());
  work.scratch_stride = kernels.scratch_floats(work.columns);
  int64_t scratch_sizes[] = {work.parts, work.scratch_stride};
  Tensor scratch = allocate(Sizes(scratch_sizes, 2), NPU_FLOAT32, device);
  work.logits = rows_of(x, Sizes(sizes.data(), 1), 1);
  work.y = y.data_ptr();
  work.scratch = static_cast<float*>(scratch.data_ptr());
  work.dtype = dtype_of(logits);
  launch(device, "npu::npu_top_k_top_p", run, Task{&kernels, work},
         {reads(x), reads(ps), reads(ks), writes(scratch), writes(y)});
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("npu_top_k_top_p(Tensor logits, Tensor? p=None, Tensor? k=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) { m.impl("npu_top_k_top_p", TORCH_BOX(&top_k_top_p)); }

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) { m.impl("npu_top_k_top_p", TORCH_BOX(&top_k_top_p)); }

}  // namespace npu::ops_llm
