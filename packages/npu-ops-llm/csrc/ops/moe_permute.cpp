// npu_moe_token_permute, npu_moe_token_unpermute and their gradients: schemas, checks and tasks.
// Fakes and autograd: src/npu_ops_llm/moe_permute.py.
#include <optional>
#include <tuple>
#include <vector>

#include "moe_rows.h"

namespace npu::ops_llm {
namespace {

using torch::headeronly::ScalarType;

// ---- permute ----------------------------------------------------------------------------------------------------

struct PermuteTask {
  const MoeRowsKernels* kernels;
  MoeCopy copy;
  const void* indices;
  int32_t *sorted_indices, *scratch;
  int64_t tokens, slots;
  npu_dtype index_dtype;
  bool padded;
};

npu_status run_permute(void* payload, npu_error* error) {
  const auto& task = *static_cast<const PermuteTask*>(payload);
  if (task.padded) {
    npu_status status = check_index("indices", task.indices, task.index_dtype, task.slots, 0, task.tokens, error);
    if (status != NPU_OK) return status;
    for (int64_t i = 0; i < task.slots; ++i) {
      task.sorted_indices[i] = static_cast<int32_t>(index_at(task.indices, task.index_dtype, i));
    }
    return run_gather(*task.kernels, task.copy, task.slots, error);
  }
  SortResult result{nullptr, task.sorted_indices, nullptr, task.scratch};
  npu_status status = task.index_dtype == NPU_INT64
                          ? stable_argsort(static_cast<const int64_t*>(task.indices), task.slots, result, error)
                          : stable_argsort(static_cast<const int32_t*>(task.indices), task.slots, result, error);
  if (status != NPU_OK) return status;
  return run_expand(*task.kernels, task.copy, task.tokens, error);
}

std::tuple<Tensor, Tensor> permute(const Tensor& tokens, const Tensor& indices, std::optional<int64_t> num_out_tokens,
                                   bool padded_mode) {
  constexpr const char* kOp = "npu_moe_token_permute";
  const Device device = device_of(tokens);
  check_same_device(kOp, device, "indices", indices);
  check_float_rows(kOp, "tokens", tokens);
  check_dims(kOp, "tokens", tokens, 2);
  check_dtype(kOp, "indices", indices, {NPU_INT32, NPU_INT64});
  NPU_CHECK_ARG(indices.dim() == 1 || indices.dim() == 2, kOp, "indices", "expected 1 or 2 dims, got shape ",
                shape_text(indices.sizes()));
  const int64_t count = tokens.size(0), slots = indices.numel(), limit = num_out_tokens.value_or(0);
  NPU_CHECK_ARG(padded_mode || indices.size(0) == count, kOp, "indices", "expected ", count,
                " rows, one for each token, got shape ", shape_text(indices.sizes()));
  NPU_CHECK_ARG(slots <= INT32_MAX, kOp, "indices", "expected fewer than 2^31 elements, got ", slots);
  const int64_t rows = padded_mode ? slots : limit > 0 ? std::min(limit, slots) : slots + limit;
  NPU_CHECK_ARG(rows >= 0, kOp, "num_out_tokens", "expected at least ", -slots, ", which drops every row, got ", limit);

  Tensor packed = as_contiguous(tokens), keys = as_contiguous(indices);
  const npu_dtype dtype = dtype_of(tokens);
  Tensor out = allocate({rows, tokens.size(1)}, dtype, device);
  Tensor sorted_indices =
      padded_mode ? npu::kernels::allocate(indices.sizes(), NPU_INT32, device) : allocate({slots}, NPU_INT32, device);
  Tensor scratch = allocate({padded_mode ? 0 : sort_scratch(slots, kAnyRange)}, NPU_INT32, device);
  if (slots > 0) {
    const int64_t row_bytes = tokens.size(1) * npu_dtype_size(dtype);
    PermuteTask task{&kRowsTables.active(),
                     {packed.data_ptr(), static_cast<const int32_t*>(sorted_indices.data_ptr()), out.data_ptr(),
                      row_bytes, count > 0 ? slots / count : 0, rows, rows * row_bytes >= NPU_STREAM_BYTES},
                     keys.data_ptr(),
                     static_cast<int32_t*>(sorted_indices.data_ptr()),
                     static_cast<int32_t*>(scratch.data_ptr()),
                     count,
                     slots,
                     dtype_of(keys),
                     padded_mode};
    launch(device, "npu::npu_moe_token_permute", run_permute, task,
           {reads(packed), reads(keys), writes(out), writes(sorted_indices), writes(scratch)});
  }
  return {out, sorted_indices};
}

// ---- sums of rows: unpermute and the gradient of permute --------------------------------------------------------

struct SumTask {
  const MoeRowsKernels* kernels;
  MoeCombine work;
  void* scratch;  // of TokenLists where padded
  int64_t tokens, slots;
  bool padded;
};

npu_status run_sum(void* payload, npu_error* error) {
  auto& task = *static_cast<SumTask*>(payload);
  MoeCombine work = task.work;
  npu_status status = check_index("sorted_indices", work.index, work.index_dtype, task.slots, 0,
                                  task.padded ? task.tokens : kNoLimit, error);
  if (status != NPU_OK) return status;
  if (task.padded) {
    TokenLists lists(task.scratch, task.slots, task.tokens);
    status = lists.fill(work.index, work.index_dtype, task.slots, task.tokens, error);
    if (status != NPU_OK) return status;
    work.index = lists.items;
    work.index_dtype = NPU_INT32;
    work.offsets = lists.offsets;
  }
  return run_combine(*task.kernels, work, task.tokens, task.slots, error);
}

/// out[t] = sum over k < ranks of weights[t, k] * rows[index[t * ranks + k]], or, padded, out[index[i]] += weights[i] *
/// rows[i].  Everything has been checked.
Tensor sum_rows(const char* name, const Device& device, const Tensor& rows, const Tensor& index,
                const OptionalTensor& weights, int64_t tokens, int64_t ranks, npu_dtype out_dtype, bool padded) {
  Tensor packed = as_contiguous(rows), positions = as_contiguous(index);
  OptionalTensor packed_weights = as_contiguous(weights);
  const int64_t slots = index.numel();
  Tensor out = allocate({tokens, rows.size(1)}, out_dtype, device);
  Tensor scratch = allocate({padded ? TokenLists::scratch(slots, tokens) : 0}, NPU_INT32, device);
  if (tokens > 0 || slots > 0) {
    SumTask task{&kRowsTables.active(), {}, scratch.data_ptr(), tokens, slots, padded};
    MoeCombine& work = task.work;
    work.rows = packed.data_ptr();
    work.index = positions.data_ptr();
    work.weights = pointer_or_null(packed_weights);
    work.out = out.data_ptr();
    work.row_count = rows.size(0);
    work.columns = rows.size(1);
    work.ranks = work.token_step = ranks;
    work.rank_step = 1;
    work.dtype = dtype_of(rows);
    work.out_dtype = out_dtype;
    work.index_dtype = dtype_of(positions);
    work.weights_dtype = dtype_or(packed_weights, NPU_FLOAT32);
    launch(device, name, run_sum, task,
           {reads(packed), reads(positions), reads(packed_weights), writes(out), writes(scratch)});
  }
  return out;
}

void check_sorted_indices(const char* op, const Tensor& sorted_indices, bool padded) {
  check_dtype(op, "sorted_indices", sorted_indices, {NPU_INT32, NPU_INT64});
  NPU_CHECK_ARG(padded || sorted_indices.dim() == 1, op, "sorted_indices", "expected 1 dim, got shape ",
                shape_text(sorted_indices.sizes()));
  NPU_CHECK_ARG(sorted_indices.numel() <= INT32_MAX, op, "sorted_indices", "expected fewer than 2^31 elements, got ",
                sorted_indices.numel());
}

Tensor permute_gradient(const char* op, const char* name, const Tensor& grad, const Tensor& sorted_indices,
                        int64_t tokens, npu_dtype dtype, int64_t ranks, bool padded) {
  const Device device = device_of(grad);
  check_same_device(op, device, "sorted_indices", sorted_indices);
  check_float_rows(op, "grad_permuted_tokens", grad);
  check_dims(op, "grad_permuted_tokens", grad, 2);
  check_sorted_indices(op, sorted_indices, padded);
  const int64_t slots = sorted_indices.numel(), expected = padded ? grad.size(0) : tokens * ranks;
  NPU_CHECK_ARG(slots == expected, op, "sorted_indices", "expected ", expected, " elements, ",
                padded ? "one for each row of grad_permuted_tokens" : "tokens times top-k", ", got ", slots);
  return sum_rows(name, device, grad, sorted_indices, std::nullopt, tokens, ranks, dtype, padded);
}

Tensor permute_grad(const Tensor& tokens, const Tensor& grad_permuted_tokens, const Tensor& indices,
                    const Tensor& sorted_indices, bool padded_mode) {
  constexpr const char* kOp = "npu_moe_token_permute_grad";
  check_same_device(kOp, device_of(tokens), "grad_permuted_tokens", grad_permuted_tokens);
  check_float_rows(kOp, "tokens", tokens);
  check_dims(kOp, "tokens", tokens, 2);
  NPU_CHECK_ARG(indices.dim() == 1 || indices.dim() == 2, kOp, "indices", "expected 1 or 2 dims, got shape ",
                shape_text(indices.sizes()));
  NPU_CHECK_ARG(grad_permuted_tokens.dim() != 2 || grad_permuted_tokens.size(1) == tokens.size(1), kOp,
                "grad_permuted_tokens", "expected ", tokens.size(1), " columns as tokens has, got shape ",
                shape_text(grad_permuted_tokens.sizes()));
  return permute_gradient(kOp, "npu::npu_moe_token_permute_grad", grad_permuted_tokens, sorted_indices, tokens.size(0),
                          dtype_of(tokens), indices.dim() == 2 ? indices.size(1) : 1, padded_mode);
}

Tensor permute_grad_v2(const Tensor& grad_permuted_tokens, const Tensor& sorted_indices, int64_t tokens_size_0,
                       ScalarType tokens_dtype, int64_t num_topk, bool padded_mode) {
  constexpr const char* kOp = "npu_moe_token_permute_grad_v2";
  const auto dtype = static_cast<npu_dtype>(tokens_dtype);
  NPU_CHECK_ARG(dtype == NPU_FLOAT16 || dtype == NPU_BFLOAT16 || dtype == NPU_FLOAT32, kOp, "tokens_dtype",
                "expected float16, bfloat16 or float32, got ", npu_dtype_name(dtype));
  NPU_CHECK_ARG(tokens_size_0 >= 0, kOp, "tokens_size_0", "expected a number of tokens, got ", tokens_size_0);
  NPU_CHECK_ARG(num_topk >= 0, kOp, "num_topK", "expected a number of experts per token, got ", num_topk);
  return permute_gradient(kOp, "npu::npu_moe_token_permute_grad_v2", grad_permuted_tokens, sorted_indices,
                          tokens_size_0, dtype, num_topk, padded_mode);
}

// ---- unpermute --------------------------------------------------------------------------------------------------

struct Restored {
  int64_t tokens, ranks;
};

/// Checks what unpermute and its gradient have in common.  `rows` and `columns` are those of permuted_tokens.
Restored check_unpermute(const char* op, const Device& device, int64_t rows, int64_t columns,
                         const Tensor& sorted_indices, const OptionalTensor& probs, bool padded,
                         const std::optional<std::vector<int64_t>>& restore_shape) {
  check_same_device(op, device, "sorted_indices", sorted_indices);
  check_same_device(op, device, "probs", probs);
  check_sorted_indices(op, sorted_indices, padded);
  const int64_t slots = sorted_indices.numel();
  if (probs.has_value()) {
    check_weights(op, "probs", *probs);
  }
  if (padded) {
    NPU_CHECK_ARG(restore_shape.has_value() && restore_shape->size() == 2 && (*restore_shape)[0] >= 0 &&
                      (*restore_shape)[1] == columns,
                  op, "restore_shape", "expected [tokens, ", columns, "], which padded_mode needs, got ",
                  restore_shape.has_value() ? shape_text(Sizes(restore_shape->data(), restore_shape->size())) : "None");
    NPU_CHECK_ARG(slots == rows, op, "sorted_indices", "expected ", rows, " elements, one for each row, got ", slots);
    const int64_t tokens = (*restore_shape)[0];
    if (probs.has_value() && (tokens > 0 || rows > 0)) {
      check_dims(op, "probs", *probs, 2);
      NPU_CHECK_ARG(probs->numel() == rows, op, "probs", "expected ", rows, " elements, one for each row, got shape ",
                    shape_text(probs->sizes()));
    }
    return {tokens, 1};
  }
  // Without slots the shape of probs does not matter, unless it says that tokens have no experts.
  if (probs.has_value() && slots == 0 && (probs->dim() != 2 || probs->size(1) > 0)) return {0, 1};
  if (probs.has_value()) check_dims(op, "probs", *probs, 2);
  const int64_t ranks = probs.has_value() ? probs->size(1) : 1;
  NPU_CHECK_ARG(ranks > 0, op, "probs", "expected at least one column, got shape ", shape_text(probs->sizes()));
  NPU_CHECK_ARG(!probs.has_value() || probs->size(0) * ranks == slots, op, "probs", "expected ", slots,
                " elements, as sorted_indices has, got shape ", shape_text(probs->sizes()));
  return {slots / ranks, ranks};
}

Tensor unpermute_as(const char* op, const char* name, const Tensor& permuted_tokens, const Tensor& sorted_indices,
                    const OptionalTensor& probs, bool padded_mode,
                    const std::optional<std::vector<int64_t>>& restore_shape) {
  check_float_rows(op, "permuted_tokens", permuted_tokens);
  check_dims(op, "permuted_tokens", permuted_tokens, 2);
  const Device device = device_of(permuted_tokens);
  Restored shape = check_unpermute(op, device, permuted_tokens.size(0), permuted_tokens.size(1), sorted_indices, probs,
                                   padded_mode, restore_shape);
  return sum_rows(name, device, permuted_tokens, sorted_indices, probs, shape.tokens, shape.ranks,
                  dtype_of(permuted_tokens), padded_mode);
}

Tensor unpermute(const Tensor& permuted_tokens, const Tensor& sorted_indices, const OptionalTensor& probs,
                 bool padded_mode, std::optional<std::vector<int64_t>> restore_shape) {
  return unpermute_as("npu_moe_token_unpermute", "npu::npu_moe_token_unpermute", permuted_tokens, sorted_indices, probs,
                      padded_mode, restore_shape);
}

std::tuple<Tensor, Tensor> internal_unpermute(const Tensor& permuted_tokens, const Tensor& sorted_indices,
                                              const OptionalTensor& probs, bool padded_mode,
                                              std::optional<std::vector<int64_t>> restore_shape) {
  Tensor out = unpermute_as("_npu_moe_token_unpermute", "npu::_npu_moe_token_unpermute", permuted_tokens,
                            sorted_indices, probs, padded_mode, restore_shape);
  // The schema says that no output aliases an input.
  return {out, probs.has_value() ? torch::stable::clone(permuted_tokens) : no_tensor()};
}

struct UnpermuteGradTask {
  const MoeRowsKernels* kernels;
  MoeSpread work;
  int32_t *first, *next, *token;
  const void* sorted_indices;
  void* zeros;  // the second output where no slot fills it, else NULL
  int64_t tokens, slots, zeros_bytes;
  npu_dtype index_dtype;
  bool padded;
};

npu_status run_unpermute_grad(void* payload, npu_error* error) {
  const auto& task = *static_cast<const UnpermuteGradTask*>(payload);
  MoeSpread work = task.work;
  npu_status status = check_index("sorted_indices", task.sorted_indices, task.index_dtype, task.slots, 0,
                                  task.padded ? task.tokens : kNoLimit, error);
  if (status != NPU_OK) return status;
  if (task.zeros != nullptr) std::memset(task.zeros, 0, static_cast<size_t>(task.zeros_bytes));
  if (task.padded) {
    for (int64_t i = 0; i < task.slots; ++i) {
      task.token[i] = static_cast<int32_t>(index_at(task.sorted_indices, task.index_dtype, i));
    }
    work.token = task.token;
  } else {
    work.index = task.sorted_indices;
    work.index_dtype = task.index_dtype;
  }
  return run_spread(*task.kernels, work, task.first, task.next, task.slots, error);
}

std::tuple<Tensor, Tensor> unpermute_gradient(const char* op, const char* name, const Tensor& grad,
                                              const Tensor& sorted_indices, int64_t rows, npu_dtype dtype,
                                              const OptionalTensor& probs, bool padded,
                                              const std::optional<std::vector<int64_t>>& restore_shape,
                                              const OptionalTensor& permuted_tokens) {
  check_float_rows(op, "grad_unpermuted_tokens", grad);
  check_dims(op, "grad_unpermuted_tokens", grad, 2);
  const Device device = device_of(grad);
  const int64_t columns = grad.size(1);
  Restored shape = check_unpermute(op, device, rows, columns, sorted_indices, probs, padded, restore_shape);
  NPU_CHECK_ARG(grad.size(0) == shape.tokens, op, "grad_unpermuted_tokens", "expected ", shape.tokens,
                " rows, one for each token, got shape ", shape_text(grad.sizes()));
  if (probs.has_value()) {
    NPU_CHECK_ARG(permuted_tokens.has_value(), op, "permuted_tokens",
                  "expected the tensor that was unpermuted, which the gradient of probs needs, got None");
    check_same_device(op, device, "permuted_tokens", *permuted_tokens);
    check_dtype(op, "permuted_tokens", *permuted_tokens, {dtype});
    const int64_t expected[] = {rows, columns};
    check_sizes(op, "permuted_tokens", *permuted_tokens, Sizes(expected, 2), "(rows, hidden)");
  }

  const int64_t slots = sorted_indices.numel();
  Tensor upstream = as_contiguous(grad), positions = as_contiguous(sorted_indices);
  OptionalTensor weights = as_contiguous(probs),
                 packed = probs.has_value() ? as_contiguous(permuted_tokens) : std::nullopt;
  Tensor out = allocate({rows, columns}, dtype, device);
  Tensor grad_probs = probs.has_value() ? npu::kernels::allocate(probs->sizes(), dtype_of(*probs), device)
                                        : allocate({}, dtype, device);
  Tensor scratch = allocate({rows + slots + (padded ? slots : 0)}, NPU_INT32, device);
  auto* first = static_cast<int32_t*>(scratch.data_ptr());
  UnpermuteGradTask task{&kRowsTables.active(),
                         {},
                         first,
                         first + rows,
                         first + rows + slots,
                         positions.data_ptr(),
                         probs.has_value() && slots > 0 ? nullptr : grad_probs.data_ptr(),
                         shape.tokens,
                         slots,
                         bytes_of(grad_probs),
                         dtype_of(positions),
                         padded};
  MoeSpread& work = task.work;
  work.upstream = upstream.data_ptr();
  work.rows = pointer_or_null(packed);
  work.weights = pointer_or_null(weights);
  work.first = task.first;
  work.next = task.next;
  work.out = out.data_ptr();
  work.products = probs.has_value() ? grad_probs.data_ptr() : nullptr;
  work.row_count = rows;
  work.columns = columns;
  work.ranks = shape.ranks;
  work.dtype = dtype;
  work.upstream_dtype = dtype_of(upstream);
  work.weights_dtype = work.products_dtype = dtype_or(probs, NPU_FLOAT32);
  work.stream = streams_rows(out, columns * npu_dtype_size(dtype));
  launch(device, name, run_unpermute_grad, task,
         {reads(upstream), reads(positions), reads(weights), reads(packed), writes(out), writes(grad_probs),
          writes(scratch)});
  return {out, grad_probs};
}

std::tuple<Tensor, Tensor> unpermute_grad(const Tensor& permuted_tokens, const Tensor& grad_unpermuted_tokens,
                                          const Tensor& sorted_indices, const OptionalTensor& probs, bool padded_mode,
                                          std::optional<std::vector<int64_t>> restore_shape) {
  constexpr const char* kOp = "npu_moe_token_unpermute_grad";
  check_same_device(kOp, device_of(permuted_tokens), "grad_unpermuted_tokens", grad_unpermuted_tokens);
  check_float_rows(kOp, "permuted_tokens", permuted_tokens);
  check_dims(kOp, "permuted_tokens", permuted_tokens, 2);
  return unpermute_gradient(kOp, "npu::npu_moe_token_unpermute_grad", grad_unpermuted_tokens, sorted_indices,
                            permuted_tokens.size(0), dtype_of(permuted_tokens), probs, padded_mode, restore_shape,
                            permuted_tokens);
}

std::tuple<Tensor, Tensor> unpermute_grad_v2(const Tensor& grad_unpermuted_tokens, const Tensor& sorted_indices,
                                             int64_t permuted_tokens_size_0, ScalarType permuted_tokens_dtype,
                                             const OptionalTensor& probs, bool padded_mode,
                                             std::optional<std::vector<int64_t>> restore_shape,
                                             const OptionalTensor& permuted_tokens) {
  constexpr const char* kOp = "npu_moe_token_unpermute_grad_v2";
  const auto dtype = static_cast<npu_dtype>(permuted_tokens_dtype);
  NPU_CHECK_ARG(dtype == NPU_FLOAT16 || dtype == NPU_BFLOAT16 || dtype == NPU_FLOAT32, kOp, "permuted_tokens_dtype",
                "expected float16, bfloat16 or float32, got ", npu_dtype_name(dtype));
  NPU_CHECK_ARG(permuted_tokens_size_0 >= 0, kOp, "permuted_tokens_size_0", "expected a number of rows, got ",
                permuted_tokens_size_0);
  return unpermute_gradient(kOp, "npu::npu_moe_token_unpermute_grad_v2", grad_unpermuted_tokens, sorted_indices,
                            permuted_tokens_size_0, dtype, probs, padded_mode, restore_shape, permuted_tokens);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def(
      "npu_moe_token_permute(Tensor tokens, Tensor indices, int? num_out_tokens=None, bool padded_mode=False) -> "
      "(Tensor, Tensor)");
  m.def(
      "npu_moe_token_permute_grad(Tensor tokens, Tensor grad_permuted_tokens, Tensor indices, Tensor sorted_indices, "
      "bool padded_mode=False) -> Tensor");
  m.def(
      "npu_moe_token_permute_grad_v2(Tensor grad_permuted_tokens, Tensor sorted_indices, int tokens_size_0, "
      "ScalarType tokens_dtype, int num_topK, bool padded_mode=False) -> Tensor");
  m.def(
      "npu_moe_token_unpermute(Tensor permuted_tokens, Tensor sorted_indices, Tensor? probs=None, "
      "bool padded_mode=False, int[]? restore_shape=None) -> Tensor");
  m.def(
      "_npu_moe_token_unpermute(Tensor permuted_tokens, Tensor sorted_indices, Tensor? probs=None, "
      "bool padded_mode=False, int[]? restore_shape=None) -> (Tensor unpermuted_tokens, Tensor "
      "permuted_tokens_for_backward)");
  m.def(
      "npu_moe_token_unpermute_grad(Tensor permuted_tokens, Tensor grad_unpermuted_tokens, Tensor sorted_indices, "
      "Tensor? probs=None, bool padded_mode=False, int[]? restore_shape=None) -> (Tensor, Tensor)");
  m.def(
      "npu_moe_token_unpermute_grad_v2(Tensor grad_unpermuted_tokens, Tensor sorted_indices, "
      "int permuted_tokens_size_0, ScalarType permuted_tokens_dtype, Tensor? probs=None, bool padded_mode=False, "
      "int[]? restore_shape=None, Tensor? permuted_tokens=None) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_moe_token_permute", TORCH_BOX(&permute));
  m.impl("npu_moe_token_permute_grad", TORCH_BOX(&permute_grad));
  m.impl("npu_moe_token_permute_grad_v2", TORCH_BOX(&permute_grad_v2));
  m.impl("npu_moe_token_unpermute", TORCH_BOX(&unpermute));
  m.impl("_npu_moe_token_unpermute", TORCH_BOX(&internal_unpermute));
  m.impl("npu_moe_token_unpermute_grad", TORCH_BOX(&unpermute_grad));
  m.impl("npu_moe_token_unpermute_grad_v2", TORCH_BOX(&unpermute_grad_v2));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_moe_token_permute", TORCH_BOX(&permute));
  m.impl("npu_moe_token_permute_grad", TORCH_BOX(&permute_grad));
  m.impl("npu_moe_token_permute_grad_v2", TORCH_BOX(&permute_grad_v2));
  m.impl("npu_moe_token_unpermute", TORCH_BOX(&unpermute));
  m.impl("_npu_moe_token_unpermute", TORCH_BOX(&internal_unpermute));
  m.impl("npu_moe_token_unpermute_grad", TORCH_BOX(&unpermute_grad));
  m.impl("npu_moe_token_unpermute_grad_v2", TORCH_BOX(&unpermute_grad_v2));
}

}  // namespace npu::ops_llm
