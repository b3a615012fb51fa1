// Gating of mixtures of experts: schemas, checks and tasks.  Fake and autograd: src/npu_ops_llm/moe_gating.py.
#include <algorithm>
#include <mutex>
#include <tuple>
#include <vector>

#include "../kernels/moe_gating.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/stable_tensor.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<MoeGatingKernels> kTables = {{
    &moe_gating_kernels_base,
#if defined(__x86_64__)
    &moe_gating_kernels_avx2,
    &moe_gating_kernels_avx512,
    &moe_gating_kernels_avx512_bf16,
#endif
}};

void check_floating(const char* op, const char* argument, const Tensor& tensor) {
  check_dtype(op, argument, tensor, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
}

/// Blocks of rows: enough for any team; their scratch memory is the price.
int64_t block_count(int64_t rows) { return std::clamp<int64_t>(rows / 16, 1, 64); }

/// An element costs about as much as eight that are copied.
int64_t block_grain(int64_t rows, int64_t experts, int64_t blocks) {
  return grain_for(8 * experts * ((rows + blocks - 1) / blocks));
}

/// None where the kernels do without.
OptionalTensor allocate_scratch(int64_t blocks, int64_t experts, const Device& device) {
  if (experts <= NPU_STACK_EXPERTS) return std::nullopt;
  int64_t size = blocks * npu_gating_scratch(experts);
  return allocate(Sizes(&size, 1), NPU_INT32, device);
}

npu_access writes_some(const OptionalTensor& tensor) {
  return tensor.has_value() ? writes(*tensor) : npu_access{nullptr, 0, 0, 0};
}

/// The bad index of the first row that has one.
struct FirstBadIndex {
  std::mutex mutex;
  MoeBadIndex index{-1, 0, 0};

  void merge(const MoeBadIndex& other) {
    if (other.row < 0) return;
    std::lock_guard<std::mutex> lock(mutex);
    if (index.row < 0 || other.row < index.row) index = other;
  }
};

// ---- npu_moe_compute_expert_tokens ----------------------------------------------------------------------------------

struct ExpertTokensTask {
  const int32_t* sorted;
  int32_t* ends;
  int64_t count, experts;
};

npu_status run_expert_tokens(void* payload, npu_error* error) {
  const auto& task = *static_cast<const ExpertTokensTask*>(payload);
  auto experts = [&](int64_t begin, int64_t end) {
    const int32_t* from = task.sorted;
    for (int64_t expert = begin; expert < end; ++expert) {
      from = std::upper_bound(from, task.sorted + task.count, expert,
                              [](int64_t value, int32_t element) { return value < element; });
      task.ends[expert] = static_cast<int32_t>(from - task.sorted);
    }
  };
  return parallel_for(task.experts, 4096, experts, error);
}

Tensor compute_expert_tokens(const Tensor& sorted_expert_for_source_row, int64_t num_expert) {
  constexpr const char* kOp = "npu_moe_compute_expert_tokens";
  const Tensor& sorted = sorted_expert_for_source_row;
  NPU_CHECK_ARG(sorted.dim() == 1, kOp, "sorted_expert_for_source_row", "expected 1 dim, got shape ",
                shape_text(sorted.sizes()), "; flatten it first");
  check_dtype(kOp, "sorted_expert_for_source_row", sorted, {NPU_INT32});
  NPU_CHECK_ARG(num_expert > 0, kOp, "num_expert", "expected a positive number, got ", num_expert);
  Device device = device_of(sorted);
  Tensor in = as_contiguous(sorted);
  Tensor out = allocate(Sizes(&num_expert, 1), NPU_INT32, device);
  ExpertTokensTask task{static_cast<const int32_t*>(in.data_ptr()), static_cast<int32_t*>(out.data_ptr()), in.numel(),
                        num_expert};
  launch(device, "npu::npu_moe_compute_expert_tokens", run_expert_tokens, task, {reads(in), writes(out)});
  return out;
}

// ---- npu_moe_gating_top_k_softmax and _v2 ---------------------------------------------------------------------------

struct SoftmaxTask {
  const MoeGatingKernels* kernels;
  MoeGatingSoftmax work;
};

npu_status run_softmax(void* payload, npu_error* error) {
  const auto& task = *static_cast<const SoftmaxTask*>(payload);
  const MoeGatingSoftmax& work = task.work;
  auto blocks = [&](int64_t begin, int64_t end) { task.kernels->softmax(&work, begin, end); };
  return parallel_for(work.blocks, block_grain(work.rows, work.experts, work.blocks), blocks, error);
}

struct Selection {
  Tensor y, expert_idx;
};

/// Checks the arguments that both versions have, computes and returns y and expert_idx.
Selection gating_softmax(const char* op, const char* task_name, const Tensor& x, const OptionalTensor& finished,
                         int64_t k, bool softmax_of_selected, const OptionalTensor& row_idx,
                         const OptionalTensor& probabilities, const std::vector<int64_t>& sizes) {
  Device device = device_of(x);
  npu_dtype dtype = dtype_of(x);
  Tensor logits = as_contiguous(x);
  OptionalTensor flags = as_contiguous(finished);
  Sizes out(sizes.data(), sizes.size());
  Selection result{allocate(out, dtype, device), allocate(out, NPU_INT32, device)};
  int64_t experts = x.sizes()[x.dim() - 1], rows = experts == 0 ? 0 : x.numel() / experts;
  if (rows == 0 || (k == 0 && !probabilities.has_value())) return result;
  NPU_CHECK_ARG(rows * k <= INT32_MAX, op, "x", "expected at most 2147483647 selected experts, got ", rows, " rows of ",
                k);
  int64_t blocks = block_count(rows);
  OptionalTensor scratch = allocate_scratch(blocks, experts, device);
  SoftmaxTask task{
      &kTables.active(),
      {logits.data_ptr(), static_cast<const uint8_t*>(pointer_or_null(flags)), result.y.data_ptr(),
       static_cast<int32_t*>(result.expert_idx.data_ptr()), static_cast<int32_t*>(pointer_or_null(row_idx)),
       static_cast<float*>(pointer_or_null(probabilities)), static_cast<int32_t*>(pointer_or_null(scratch)), rows,
       experts, k, blocks, softmax_of_selected, dtype}};
  launch(device, task_name, run_softmax, task,
         {reads(logits), reads(flags), writes(result.y), writes(result.expert_idx), writes_some(row_idx),
          writes_some(probabilities), writes_some(scratch)});
  return result;
}

/// Shape of the outputs: x's leading sizes and k.
std::vector<int64_t> check_softmax_arguments(const char* op, const Tensor& x, const OptionalTensor& finished,
                                             int64_t k) {
  Sizes sizes = x.sizes();
  NPU_CHECK_ARG(sizes.size() == 2 || sizes.size() == 3, op, "x", "expected 2 or 3 dims, got shape ", shape_text(sizes));
  check_floating(op, "x", x);
  int64_t experts = sizes[sizes.size() - 1];
  NPU_CHECK_ARG(k >= 0 && k <= experts, op, "k", "expected 0 to ", experts, " (the experts of x), got ", k);
  if (finished.has_value()) {
    check_same_device(op, device_of(x), "finished", *finished);
    check_dtype(op, "finished", *finished, {NPU_BOOL});
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < sizes.size(); ++i) rows *= sizes[i];
    if (rows > 0) {  // without rows the shape of what is optional does not matter
      check_sizes(op, "finished", *finished, Sizes(sizes.data(), sizes.size() - 1), "(x without its last dim)");
    }
  }
  std::vector<int64_t> out(sizes.begin(), sizes.end());
  out.back() = k;
  return out;
}

std::tuple<Tensor, Tensor, Tensor> gating_top_k_softmax(const Tensor& x, const OptionalTensor& finished, int64_t k) {
  constexpr const char* kOp = "npu_moe_gating_top_k_softmax";
  std::vector<int64_t> sizes = check_softmax_arguments(kOp, x, finished, k);
  Tensor row_idx = allocate(Sizes(sizes.data(), sizes.size()), NPU_INT32, device_of(x));
  Selection result =
      gating_softmax(kOp, "npu::npu_moe_gating_top_k_softmax", x, finished, k, false, row_idx, std::nullopt, sizes);
  return {result.y, result.expert_idx, row_idx};
}

std::tuple<Tensor, Tensor, Tensor> gating_top_k_softmax_v2(const Tensor& x, int64_t k, const OptionalTensor& finished,
                                                           std::optional<int64_t> renorm,
                                                           std::optional<bool> output_softmax) {
  constexpr const char* kOp = "npu_moe_gating_top_k_softmax_v2";
  std::vector<int64_t> sizes = check_softmax_arguments(kOp, x, finished, k);
  int64_t order = renorm.value_or(0);
  NPU_CHECK_ARG(order == 0 || order == 1, kOp, "renorm",
                "expected 0 (softmax, then top-k) or 1 (top-k, then softmax), got ", order);
  bool wanted = order == 0 && output_softmax.value_or(false);
  int64_t none = 0;
  Tensor probabilities = allocate(wanted ? x.sizes() : Sizes(&none, 1), NPU_FLOAT32, device_of(x));
  Selection result = gating_softmax(kOp, "npu::npu_moe_gating_top_k_softmax_v2", x, finished, k, order == 1,
                                    std::nullopt, wanted ? OptionalTensor(probabilities) : std::nullopt, sizes);
  return {result.y, result.expert_idx, probabilities};
}

// ---- npu_moe_gating_top_k -------------------------------------------------------------------------------------------

struct TopKTask {
  const MoeGatingKernels* kernels;
  MoeGatingTopK work;
};

npu_status run_top_k(void* payload, npu_error* error) {
  const auto& task = *static_cast<const TopKTask*>(payload);
  const MoeGatingTopK& work = task.work;
  FirstBadIndex first;
  auto blocks = [&](int64_t begin, int64_t end) {
    MoeBadIndex bad{-1, 0, 0};
    task.kernels->top_k(&work, begin, end, &bad);
    first.merge(bad);
  };
  npu_status status = parallel_for(work.blocks, block_grain(work.rows, work.experts, work.blocks), blocks, error);
  if (status != NPU_OK || first.index.row < 0) return status;
  std::snprintf(error->message, sizeof(error->message),
                "argument %s: expected indices from 0 to %lld, got %lld for row %lld of x",
                first.index.in_map ? "tid2eid" : "input_ids",
                static_cast<long long>((first.index.in_map ? work.experts : work.map_rows) - 1),
                static_cast<long long>(first.index.value), static_cast<long long>(first.index.row));
  return NPU_ERROR_INDEX;
}

void check_norm(const char* op, int64_t norm_type) {
  NPU_CHECK_ARG(norm_type >= 0 && norm_type <= 2, op, "norm_type",
                "expected 0 (softmax), 1 (sigmoid) or 2 (square root of softplus), got ", norm_type);
}

std::tuple<Tensor, Tensor, Tensor> gating_top_k(const Tensor& x, int64_t k, const OptionalTensor& bias,
                                                const OptionalTensor& input_ids, const OptionalTensor& tid2eid,
                                                int64_t k_group, int64_t group_count, int64_t group_select_mode,
                                                int64_t renorm, int64_t norm_type, bool out_flag,
                                                double routed_scaling_factor, double eps) {
  constexpr const char* kOp = "npu_moe_gating_top_k";
  static_cast<void>(out_flag);  // the probabilities are always written: the gradient needs them
  Sizes sizes = x.sizes();
  NPU_CHECK_ARG(sizes.size() == 2, kOp, "x", "expected 2 dims, (rows, experts), got shape ", shape_text(sizes));
  check_floating(kOp, "x", x);
  int64_t rows = sizes[0], experts = sizes[1];
  Device device = device_of(x);
  npu_dtype dtype = dtype_of(x);
  if (bias.has_value()) {
    check_same_device(kOp, device, "bias", *bias);
    check_dtype(kOp, "bias", *bias, {dtype});
    if (rows > 0) check_sizes(kOp, "bias", *bias, Sizes(&experts, 1), "(experts)");
  }
  NPU_CHECK_ARG(group_count >= 1 && experts % group_count == 0, kOp, "group_count", "expected a divisor of the ",
                experts, " experts, got ", group_count);
  NPU_CHECK_ARG(k_group >= 1 && k_group <= group_count, kOp, "k_group", "expected 1 to ", group_count,
                " (group_count), got ", k_group);
  NPU_CHECK_ARG(group_select_mode == 0 || group_select_mode == 1, kOp, "group_select_mode",
                "expected 0 (largest of a group) or 1 (sum of the two largest), got ", group_select_mode);
  NPU_CHECK_ARG(group_select_mode == 0 || group_count == 1 || experts / group_count >= 2, kOp, "group_select_mode",
                "1 takes the two largest of a group, got groups of ", experts / group_count);
  int64_t most = experts / group_count * k_group;
  NPU_CHECK_ARG(k >= 1 && k <= most, kOp, "k", "expected 1 to ", most, " (the experts of k_group groups), got ", k);
  check_norm(kOp, norm_type);
  NPU_CHECK_ARG(input_ids.has_value() == tid2eid.has_value(), kOp, input_ids.has_value() ? "tid2eid" : "input_ids",
                "expected input_ids and tid2eid together or neither, got only ",
                input_ids.has_value() ? "input_ids" : "tid2eid");
  if (input_ids.has_value()) {
    check_same_device(kOp, device, "input_ids", *input_ids);
    check_same_device(kOp, device, "tid2eid", *tid2eid);
    check_dtype(kOp, "input_ids", *input_ids, {NPU_INT32, NPU_INT64});
    check_dtype(kOp, "tid2eid", *tid2eid, {NPU_INT32, NPU_INT64});
    if (rows > 0) check_sizes(kOp, "input_ids", *input_ids, Sizes(&rows, 1), "(rows of x)");
    NPU_CHECK_ARG(rows == 0 || (tid2eid->dim() == 2 && tid2eid->sizes()[1] == k), kOp, "tid2eid",
                  "expected shape [any, ", k, "], got ", shape_text(tid2eid->sizes()));
  }
  Tensor logits = as_contiguous(x);
  OptionalTensor offsets = as_contiguous(bias), ids = as_contiguous(input_ids), map = as_contiguous(tid2eid);
  int64_t out_sizes[] = {rows, k};
  Tensor y = allocate(Sizes(out_sizes, 2), dtype, device);
  Tensor expert_idx = allocate(Sizes(out_sizes, 2), NPU_INT32, device);
  Tensor probabilities = allocate(sizes, NPU_FLOAT32, device);
  if (rows == 0) return {y, expert_idx, probabilities};
  int64_t blocks = block_count(rows);
  OptionalTensor scratch = allocate_scratch(blocks, experts, device);
  MoeGatingTopK work{};
  work.x = logits.data_ptr();
  work.bias = pointer_or_null(offsets);
  work.ids = pointer_or_null(ids);
  work.map = pointer_or_null(map);
  work.y = y.data_ptr();
  work.expert_idx = static_cast<int32_t*>(expert_idx.data_ptr());
  work.probabilities = static_cast<float*>(probabilities.data_ptr());
  work.scratch = static_cast<int32_t*>(pointer_or_null(scratch));
  work.rows = rows;
  work.experts = experts;
  work.k = k;
  work.blocks = blocks;
  work.groups = group_count;
  work.selected_groups = k_group;
  work.norm_type = static_cast<int32_t>(norm_type);
  work.sum_of_two = group_select_mode == 1;
  work.normalised = norm_type != NPU_GATE_SOFTMAX || renorm == 1;
  work.factor = static_cast<float>(routed_scaling_factor);
  work.eps = static_cast<float>(eps);
  work.dtype = dtype;
  if (ids.has_value()) {
    work.map_rows = map->sizes()[0];
    work.id_dtype = dtype_of(*ids);
    work.map_dtype = dtype_of(*map);
  }
  launch(device, "npu::npu_moe_gating_top_k", run_top_k, TopKTask{&kTables.active(), work},
         {reads(logits), reads(offsets), reads(ids), reads(map), writes(y), writes(expert_idx), writes(probabilities),
          writes_some(scratch)});
  return {y, expert_idx, probabilities};
}

struct TopKBackwardTask {
  const MoeGatingKernels* kernels;
  MoeGatingTopKBackward work;
};

npu_status run_top_k_backward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const TopKBackwardTask*>(payload);
  const MoeGatingTopKBackward& work = task.work;
  FirstBadIndex first;
  auto blocks = [&](int64_t begin, int64_t end) {
    MoeBadIndex bad{-1, 0, 0};
    task.kernels->top_k_backward(&work, begin, end, &bad);
    first.merge(bad);
  };
  npu_status status = parallel_for(work.blocks, block_grain(work.rows, work.experts, work.blocks), blocks, error);
  if (status != NPU_OK || first.index.row < 0) return status;
  std::snprintf(error->message, sizeof(error->message),
                "argument expertIdx: expected indices from 0 to %lld, got %lld in row %lld",
                static_cast<long long>(work.experts - 1), static_cast<long long>(first.index.value),
                static_cast<long long>(first.index.row));
  return NPU_ERROR_INDEX;
}

Tensor gating_top_k_backward(const Tensor& x_norm, const Tensor& grad_y, const Tensor& expert_idx, int64_t renorm,
                             int64_t norm_type, double routed_scaling_factor, double eps) {
  constexpr const char* kOp = "npu_moe_gating_top_k_backward";
  Sizes sizes = x_norm.sizes();
  NPU_CHECK_ARG(sizes.size() == 2, kOp, "x_norm", "expected 2 dims, (rows, experts), got shape ", shape_text(sizes));
  check_dtype(kOp, "x_norm", x_norm, {NPU_FLOAT32});
  Device device = device_of(x_norm);
  check_same_device(kOp, device, "grad_y", grad_y);
  check_same_device(kOp, device, "expertIdx", expert_idx);
  check_floating(kOp, "grad_y", grad_y);
  check_dtype(kOp, "expertIdx", expert_idx, {NPU_INT32});
  NPU_CHECK_ARG(grad_y.dim() == 2 && grad_y.sizes()[0] == sizes[0], kOp, "grad_y", "expected shape [", sizes[0],
                ", k], got ", shape_text(grad_y.sizes()));
  NPU_CHECK_ARG(grad_y.sizes()[1] <= sizes[1], kOp, "grad_y", "expected at most ", sizes[1], " columns (experts), got ",
                grad_y.sizes()[1]);
  check_sizes(kOp, "expertIdx", expert_idx, grad_y.sizes(), "(as grad_y)");
  check_norm(kOp, norm_type);
  npu_dtype dtype = dtype_of(grad_y);
  Tensor p = as_contiguous(x_norm), dy = as_contiguous(grad_y), indices = as_contiguous(expert_idx);
  Tensor dx = allocate(sizes, dtype, device);
  if (dx.numel() == 0) return dx;
  int64_t blocks = block_count(sizes[0]);
  OptionalTensor scratch = allocate_scratch(blocks, sizes[1], device);
  TopKBackwardTask task{
      &kTables.active(),
      {static_cast<const float*>(p.data_ptr()), dy.data_ptr(), static_cast<const int32_t*>(indices.data_ptr()),
       dx.data_ptr(), static_cast<int32_t*>(pointer_or_null(scratch)), sizes[0], sizes[1], dy.sizes()[1], blocks,
       static_cast<int32_t>(norm_type), norm_type != NPU_GATE_SOFTMAX || renorm == 1,
       static_cast<float>(routed_scaling_factor), static_cast<float>(eps), dtype}};
  launch(device, "npu::npu_moe_gating_top_k_backward", run_top_k_backward, task,
         {reads(p), reads(dy), reads(indices), writes(dx), writes_some(scratch)});
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("npu_moe_compute_expert_tokens(Tensor sorted_expert_for_source_row, int num_expert) -> Tensor");
  m.def("npu_moe_gating_top_k_softmax(Tensor x, Tensor? finished=None, int k=1) -> (Tensor, Tensor, Tensor)");
  m.def(
      "npu_moe_gating_top_k_softmax_v2(Tensor x, *, int k=1, Tensor? finished=None, int? renorm=0, "
      "bool? output_softmax=False) -> (Tensor, Tensor, Tensor)");
  m.def(
      "npu_moe_gating_top_k(Tensor x, int k, *, Tensor? bias=None, Tensor? input_ids=None, Tensor? tid2eid=None, "
      "int k_group=1, int group_count=1, int group_select_mode=0, int renorm=0, int norm_type=0, bool out_flag=False, "
      "float routed_scaling_factor=1.0, float eps=1e-20) -> (Tensor, Tensor, Tensor)");
  m.def(
      "npu_moe_gating_top_k_backward(Tensor x_norm, Tensor grad_y, Tensor expertIdx, *, int renorm=0, "
      "int norm_type=0, float routed_scaling_factor=1.0, float eps=1e-20) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_moe_compute_expert_tokens", TORCH_BOX(&compute_expert_tokens));
  m.impl("npu_moe_gating_top_k_softmax", TORCH_BOX(&gating_top_k_softmax));
  m.impl("npu_moe_gating_top_k_softmax_v2", TORCH_BOX(&gating_top_k_softmax_v2));
  m.impl("npu_moe_gating_top_k", TORCH_BOX(&gating_top_k));
  m.impl("npu_moe_gating_top_k_backward", TORCH_BOX(&gating_top_k_backward));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_moe_compute_expert_tokens", TORCH_BOX(&compute_expert_tokens));
  m.impl("npu_moe_gating_top_k_softmax", TORCH_BOX(&gating_top_k_softmax));
  m.impl("npu_moe_gating_top_k_softmax_v2", TORCH_BOX(&gating_top_k_softmax_v2));
  m.impl("npu_moe_gating_top_k", TORCH_BOX(&gating_top_k));
  m.impl("npu_moe_gating_top_k_backward", TORCH_BOX(&gating_top_k_backward));
}

}  // namespace npu::ops_llm
