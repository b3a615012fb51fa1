// npu_attention_update: schema, checks and task.  Fake: src/npu_ops_llm/attention_update.py.
#include <tuple>
#include <vector>

#include "../kernels/attention_update.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/stable_tensor.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

constexpr const char* kOp = "npu_attention_update";

const KernelTables<AttentionUpdateKernels> kTables = {{
    &attention_update_kernels_base,
#if defined(__x86_64__)
    &attention_update_kernels_avx2,
    &attention_update_kernels_avx512,
    &attention_update_kernels_avx512_bf16,
#endif
}};

void check(const std::vector<Tensor>& lse, const std::vector<Tensor>& local_out, int64_t update_type) {
  NPU_CHECK_ARG(update_type == 0 || update_type == 1, kOp, "update_type", "expected 0 or 1, got ", update_type);
  NPU_CHECK_ARG(!lse.empty() && lse.size() <= ATTENTION_UPDATE_PARTS, kOp, "lse", "expected 1 to ",
                int(ATTENTION_UPDATE_PARTS), " tensors, got ", lse.size());
  NPU_CHECK_ARG(local_out.size() == lse.size(), kOp, "local_out", "expected as many tensors as lse has, ", lse.size(),
                ", got ", local_out.size());
  const Tensor& first = local_out[0];
  check_dtype(kOp, "local_out", first, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  NPU_CHECK_ARG(first.dim() == 2, kOp, "local_out", "expected tensors of shape (rows, columns), got ",
                shape_text(first.sizes()));
  Device device = device_of(first);
  int64_t rows[] = {first.size(0)};
  for (size_t i = 0; i < lse.size(); ++i) {
    check_same_device(kOp, device, "lse", lse[i]);
    check_same_device(kOp, device, "local_out", local_out[i]);
    check_dtype(kOp, "lse", lse[i], {NPU_FLOAT32});
    check_dtype(kOp, "local_out", local_out[i], {dtype_of(first)});
    check_sizes(kOp, "local_out", local_out[i], first.sizes(), "(as the first)");
    check_sizes(kOp, "lse", lse[i], Sizes(rows, 1), "(one per row of local_out)");
  }
}

struct Task {
  const AttentionUpdateKernels* kernels;
  AttentionUpdate work;
};

npu_status run(void* payload, npu_error* error) {
  const auto& task = *static_cast<const Task*>(payload);
  auto rows = [&](int64_t begin, int64_t end) { task.kernels->combine(&task.work, begin, end); };
  return parallel_for(task.work.rows, grain_for(task.work.columns * task.work.parts), rows, error);
}

std::tuple<Tensor, Tensor> attention_update(std::vector<Tensor> lse, std::vector<Tensor> local_out,
                                            int64_t update_type) {
  check(lse, local_out, update_type);
  Device device = device_of(local_out[0]);
  npu_dtype dtype = dtype_of(local_out[0]);
  Tensor combined = allocate(local_out[0].sizes(), dtype, device);
  Tensor combined_lse = allocate(lse[0].sizes(), NPU_FLOAT32, device);
  Task task{&kTables.active(),
            {{},
             {},
             combined.data_ptr(),
             static_cast<float*>(combined_lse.data_ptr()),
             static_cast<int64_t>(lse.size()),
             combined.size(0),
             combined.size(1),
             dtype}};
  for (size_t i = 0; i < lse.size(); ++i) {
    lse[i] = as_contiguous(lse[i]);
    local_out[i] = as_contiguous(local_out[i]);
    task.work.lse[i] = static_cast<const float*>(lse[i].data_ptr());
    task.work.out[i] = local_out[i].data_ptr();
  }
  std::vector<npu_access> accesses{writes(combined), writes(combined_lse)};
  for (size_t i = 0; i < lse.size(); ++i) accesses.insert(accesses.end(), {reads(lse[i]), reads(local_out[i])});
  launch(device, "npu::npu_attention_update", run, task, accesses.data(), accesses.size());
  if (update_type == 0) {
    int64_t none[] = {0};
    combined_lse = allocate(Sizes(none, 1), NPU_FLOAT32, device);
  }
  return {combined, combined_lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("npu_attention_update(Tensor[] lse, Tensor[] local_out, int update_type) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) { m.impl("npu_attention_update", TORCH_BOX(&attention_update)); }

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) { m.impl("npu_attention_update", TORCH_BOX(&attention_update)); }

}  // namespace npu::ops_llm
