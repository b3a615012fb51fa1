// npu_cross_entropy_loss and its gradient: schemas, checks and tasks.  Fake and autograd:
// src/npu_ops_llm/cross_entropy.py.
#include "../kernels/cross_entropy.h"

#include <cinttypes>
#include <tuple>

#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/strings.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<CrossEntropyKernels> kTables = {{
    &cross_entropy_kernels_base,
#if defined(__x86_64__)
    &cross_entropy_kernels_avx2,
    &cross_entropy_kernels_avx512,
    &cross_entropy_kernels_avx512_bf16,
#endif
}};

// ---- what both directions check and sum ---------------------------------------------------------------------------

int32_t check_reduction(const char* op, const String& reduction) {
  if (reduction == "mean") return CROSS_ENTROPY_MEAN;
  if (reduction == "sum") return CROSS_ENTROPY_SUM;
  NPU_CHECK_ARG(reduction == "none", op, "reduction", "expected 'mean', 'sum' or 'none', got '", reduction.value, "'");
  return CROSS_ENTROPY_NONE;
}

/// Checks what belongs to the rows of `logits` (called `name`).
void check_rows(const char* op, const char* name, const Tensor& logits, const Tensor& target,
                const OptionalTensor& weight, double label_smoothing) {
  Device device = device_of(logits);
  check_same_device(op, device, "target", target);
  check_same_device(op, device, "weight", weight);
  check_dtype(op, name, logits, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  check_dtype(op, "target", target, {NPU_INT64});
  Sizes sizes = logits.sizes();
  NPU_CHECK_ARG(sizes.size() == 2, op, name, "expected shape (N, C), got ", shape_text(sizes));
  check_sizes(op, "target", target, Sizes(&sizes[0], 1), "(one per row)");
  if (weight.has_value()) {
    check_dtype(op, "weight", *weight, {NPU_FLOAT32});
    check_sizes(op, "weight", *weight, Sizes(&sizes[1], 1), "(one per class)");
  }
  NPU_CHECK_ARG(label_smoothing >= 0 && label_smoothing < 1, op, "label_smoothing", "expected a number in [0, 1), got ",
                label_smoothing);
}

/// Checks the targets and sums over rows and classes, in one order.
template <class Work>
npu_status sum_totals(const Work& work, CrossEntropyTotals* totals, npu_error* error) {
  *totals = {0, 0, static_cast<double>(work.classes)};
  for (int64_t row = 0; row < work.rows; ++row) {
    int64_t target = work.target[row];
    if (work.ignore_index >= 0 && target == work.ignore_index) continue;
    if (target < 0 || target >= work.classes) {
      std::snprintf(error->message, sizeof(error->message),
                    "argument target: expected numbers in [0, %" PRId64 "), got %" PRId64 " in row %" PRId64 "%s",
                    work.classes, target, row,
                    target < 0 ? "; only an ignore_index of 0 or more is ignored, a negative one is not" : "");
      return NPU_ERROR_INDEX;
    }
    totals->target_weight += work.weight != nullptr ? static_cast<double>(work.weight[target]) : 1.0;
    totals->rows += 1;
  }
  if (work.weight != nullptr && work.smoothing > 0) {
    totals->class_weight = 0;
    for (int64_t c = 0; c < work.classes; ++c) totals->class_weight += static_cast<double>(work.weight[c]);
  }
  return NPU_OK;
}

const float* floats_or_null(const OptionalTensor& tensor) { return static_cast<const float*>(pointer_or_null(tensor)); }

// ---- forward ------------------------------------------------------------------------------------------------------

struct ForwardTask {
  const CrossEntropyKernels* kernels;
  CrossEntropyForward work;
};

npu_status run_forward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const ForwardTask*>(payload);
  CrossEntropyTotals totals;
  npu_status status = sum_totals(task.work, &totals, error);
  if (status != NPU_OK) return status;
  auto rows = [&](int64_t begin, int64_t end) { task.kernels->forward(&task.work, begin, end); };
  status = parallel_for(task.work.rows, grain_for(task.work.classes), rows, error);
  if (status == NPU_OK) task.kernels->reduce(&task.work, &totals);
  return status;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_loss(const Tensor& input, const Tensor& target,
                                                              const OptionalTensor& weight, String reduction,
                                                              int64_t ignore_index, double label_smoothing,
                                                              double lse_square_scale_for_zloss, bool return_zloss) {
  constexpr const char* kOp = "npu_cross_entropy_loss";
  int32_t reduce = check_reduction(kOp, reduction);
  check_rows(kOp, "input", input, target, weight, label_smoothing);
  Device device = device_of(input);
  npu_dtype dtype = dtype_of(input);
  int64_t rows = input.size(0), classes = input.size(1);
  bool with_lse = lse_square_scale_for_zloss != 0;
  int64_t losses = reduce == CROSS_ENTROPY_NONE ? rows : 1;
  int64_t zlosses = return_zloss ? losses : 0, lses = with_lse ? rows : 0, scratch_sizes[] = {2, rows};

  Tensor x = as_contiguous(input), labels = as_contiguous(target);
  OptionalTensor weights = as_contiguous(weight);
  Tensor loss = allocate(Sizes(&losses, 1), dtype, device), log_prob = allocate(input.sizes(), dtype, device);
  Tensor zloss = allocate(Sizes(&zlosses, 1), dtype, device), lse = allocate(Sizes(&lses, 1), dtype, device);
  Tensor scratch = allocate(Sizes(scratch_sizes, 2), NPU_FLOAT32, device);
  if (losses > 0) {
    auto* of_rows = static_cast<float*>(scratch.data_ptr());
    ForwardTask task{
        &kTables.active(),
        {x.data_ptr(), static_cast<const int64_t*>(labels.data_ptr()), floats_or_null(weights), log_prob.data_ptr(),
         of_rows, of_rows + rows, loss.data_ptr(), return_zloss ? zloss.data_ptr() : nullptr,
         with_lse ? lse.data_ptr() : nullptr, rows, classes, ignore_index, static_cast<float>(label_smoothing),
         static_cast<float>(lse_square_scale_for_zloss), reduce, dtype}};
    launch(device, "npu::npu_cross_entropy_loss", run_forward, task,
           {reads(x), reads(labels), reads(weights), writes(loss), writes(log_prob), writes(zloss), writes(lse),
            writes(scratch)});
  }
  return {loss, log_prob, zloss, lse};
}

// ---- backward -----------------------------------------------------------------------------------------------------

struct BackwardTask {
  const CrossEntropyKernels* kernels;
  CrossEntropyBackward work;
  bool mean;
};

npu_status run_backward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const BackwardTask*>(payload);
  CrossEntropyTotals totals;
  npu_status status = sum_totals(task.work, &totals, error);
  if (status != NPU_OK) return status;
  auto loss_factor = static_cast<float>(task.mean ? 1.0 / totals.target_weight : 1.0);
  auto zloss_factor = static_cast<float>(task.mean ? 1.0 / totals.rows : 1.0);
  auto rows = [&](int64_t begin, int64_t end) {
    task.kernels->backward(&task.work, totals.class_weight, loss_factor, zloss_factor, begin, end);
  };
  return parallel_for(task.work.rows, grain_for(task.work.classes), rows, error);
}

/// Checks an upstream gradient; returns how far apart its elements of two rows are.
int64_t check_upstream(const char* op, const char* argument, const Tensor& grad, const Tensor& log_prob,
                       int32_t reduction) {
  check_same_device(op, device_of(log_prob), argument, grad);
  npu_dtype dtype = dtype_of(log_prob);
  NPU_CHECK_ARG(dtype_of(grad) == dtype, op, argument, "expected dtype ", npu_dtype_name(dtype), " (as log_prob), got ",
                npu_dtype_name(dtype_of(grad)), "; convert it first");
  Sizes sizes = grad.sizes();
  if (sizes.empty() || (sizes.size() == 1 && sizes[0] == 1)) return 0;
  int64_t rows = log_prob.size(0);
  NPU_CHECK_ARG(reduction == CROSS_ENTROPY_NONE && sizes.size() == 1 && sizes[0] == rows, op, argument,
                "expected shape ", reduction == CROSS_ENTROPY_NONE ? text("[", rows, "] (one per row) or [1]") : "[1]",
                ", got ", shape_text(sizes));
  return 1;
}

Tensor cross_entropy_loss_backward(const Tensor& grad_loss, const Tensor& log_prob, const Tensor& target,
                                   const OptionalTensor& weight, const OptionalTensor& grad_zloss,
                                   const OptionalTensor& lse_for_zloss, String reduction, int64_t ignore_index,
                                   double label_smoothing, double lse_square_scale_for_zloss) {
  constexpr const char* kOp = "npu_cross_entropy_loss_backward";
  int32_t reduce = check_reduction(kOp, reduction);
  check_rows(kOp, "log_prob", log_prob, target, weight, label_smoothing);
  int64_t grad_step = check_upstream(kOp, "grad_loss", grad_loss, log_prob, reduce), grad_zloss_step = 0;
  Device device = device_of(log_prob);
  npu_dtype dtype = dtype_of(log_prob);
  int64_t rows = log_prob.size(0), classes = log_prob.size(1);
  // Without a scale, the z-loss is 0 whatever the input.
  bool with_zloss = grad_zloss.has_value() && lse_square_scale_for_zloss != 0;
  OptionalTensor upstream_zloss, lse;
  if (with_zloss) {
    grad_zloss_step = check_upstream(kOp, "grad_zloss", *grad_zloss, log_prob, reduce);
    NPU_CHECK_ARG(lse_for_zloss.has_value(), kOp, "lse_for_zloss",
                  "expected the fourth output of npu_cross_entropy_loss, which grad_zloss needs, got None");
    check_same_device(kOp, device, "lse_for_zloss", *lse_for_zloss);
    check_dtype(kOp, "lse_for_zloss", *lse_for_zloss, {dtype});
    check_sizes(kOp, "lse_for_zloss", *lse_for_zloss, Sizes(&rows, 1), "(one per row)");
    upstream_zloss = as_contiguous(grad_zloss);
    lse = as_contiguous(lse_for_zloss);
  }
  Tensor upstream = as_contiguous(grad_loss), log_probs = as_contiguous(log_prob), labels = as_contiguous(target);
  OptionalTensor weights = as_contiguous(weight);
  Tensor grad = allocate(log_prob.sizes(), dtype, device);
  if (rows > 0) {
    BackwardTask task{&kTables.active(),
                      {upstream.data_ptr(), log_probs.data_ptr(), static_cast<const int64_t*>(labels.data_ptr()),
                       floats_or_null(weights), pointer_or_null(upstream_zloss), pointer_or_null(lse), grad.data_ptr(),
                       rows, classes, ignore_index, grad_step, grad_zloss_step, static_cast<float>(label_smoothing),
                       static_cast<float>(lse_square_scale_for_zloss), dtype},
                      reduce == CROSS_ENTROPY_MEAN};
    launch(device, "npu::npu_cross_entropy_loss_backward", run_backward, task,
           {reads(upstream), reads(log_probs), reads(labels), reads(weights), reads(upstream_zloss), reads(lse),
            writes(grad)});
  }
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def(
      "npu_cross_entropy_loss(Tensor input, Tensor target, Tensor? weight=None, str reduction='mean', int "
      "ignore_index=-100, float label_smoothing=0.0, float lse_square_scale_for_zloss=0.0, bool return_zloss=False) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "npu_cross_entropy_loss_backward(Tensor grad_loss, Tensor log_prob, Tensor target, Tensor? weight=None, Tensor? "
      "grad_zloss=None, Tensor? lse_for_zloss=None, str reduction='mean', int ignore_index=-100, float "
      "label_smoothing=0.0, float lse_square_scale_for_zloss=0.0) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_cross_entropy_loss", TORCH_BOX(&cross_entropy_loss));
  m.impl("npu_cross_entropy_loss_backward", TORCH_BOX(&cross_entropy_loss_backward));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_cross_entropy_loss", TORCH_BOX(&cross_entropy_loss));
  m.impl("npu_cross_entropy_loss_backward", TORCH_BOX(&cross_entropy_loss_backward));
}

}  // namespace npu::ops_llm
