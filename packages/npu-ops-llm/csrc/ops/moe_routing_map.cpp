// npu_moe_token_permute_with_routing_map, npu_moe_token_unpermute_with_routing_map and their gradients: schemas, checks
// and tasks.  Fakes and autograd: src/npu_ops_llm/moe_routing_map.py.
#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "moe_rows.h"
#include "routing_map.h"

namespace npu::ops_llm {
namespace {

void check_map(const char* op, const Tensor& map) {
  check_dims(op, "routing_map", map, 2);
  check_dtype(op, "routing_map", map, {NPU_BOOL, NPU_INT8, NPU_UINT8});
}

// ---- permute ----------------------------------------------------------------------------------------------------

struct PermuteTask {
  const MoeRowsKernels* kernels;
  MoeCopy copy;
  RoutingMap map;
  const void* probs;
  void* permuted_probs;
  int32_t *sorted_indices, *experts, *scratch;
  int64_t rows, capacity, element_size;  // of probs
  bool padded;
};

npu_status run_permute(void* payload, npu_error* error) {
  const auto& task = *static_cast<const PermuteTask*>(payload);
  const RoutingMap& map = task.map;
  if (task.padded) {
    npu_status status = fill_experts(map, task.capacity, task.sorted_indices, task.scratch, error);
    if (status != NPU_OK) return status;
    if (task.probs != nullptr) {
      for (int64_t i = 0; i < task.rows; ++i) {
        copy_element(task.permuted_probs, i, task.probs, task.sorted_indices[i] * map.experts + i / task.capacity,
                     task.element_size);
      }
    }
    return run_gather(*task.kernels, task.copy, task.rows, error);
  }
  npu_status status = find_experts(map, task.experts, error);
  if (status != NPU_OK) return status;
  auto key = [=](int64_t slot) { return static_cast<uint64_t>(task.experts[slot]); };
  status = counting_sort(task.rows, static_cast<uint64_t>(map.experts), key,
                         {nullptr, task.sorted_indices, nullptr, task.scratch}, error);
  if (status != NPU_OK) return status;
  if (task.probs != nullptr) {
    for (int64_t slot = 0; slot < task.rows; ++slot) {
      copy_element(task.permuted_probs, task.sorted_indices[slot], task.probs,
                   slot / map.ranks * map.experts + task.experts[slot], task.element_size);
    }
  }
  return run_expand(*task.kernels, task.copy, map.tokens, error);
}

std::tuple<Tensor, Tensor, Tensor> permute(const Tensor& tokens, const Tensor& routing_map, const OptionalTensor& probs,
                                           std::optional<int64_t> num_out_tokens, bool drop_and_pad) {
  constexpr const char* kOp = "npu_moe_token_permute_with_routing_map";
  const Device device = device_of(tokens);
  check_same_device(kOp, device, "routing_map", routing_map);
  check_same_device(kOp, device, "probs", probs);
  check_float_rows(kOp, "tokens", tokens);
  check_dims(kOp, "tokens", tokens, 2);
  check_map(kOp, routing_map);
  const int64_t count = tokens.size(0), experts = routing_map.size(1), wanted = num_out_tokens.value_or(count);
  NPU_CHECK_ARG(routing_map.size(0) == count, kOp, "routing_map", "expected ", count,
                " rows, one for each token, got shape ", shape_text(routing_map.sizes()));
  if (probs.has_value()) {
    check_weights(kOp, "probs", *probs);
    if (count > 0) check_sizes(kOp, "probs", *probs, routing_map.sizes(), "(tokens, experts)");
  }
  NPU_CHECK_ARG(wanted >= 0, kOp, "num_out_tokens", "expected a number of rows, got ", wanted);
  const int64_t parts = drop_and_pad ? experts : count, each = parts > 0 ? wanted / parts : 0, rows = each * parts;
  NPU_CHECK_ARG(rows <= INT32_MAX, kOp, "num_out_tokens", "expected fewer than 2^31 rows, got ", rows);
  NPU_CHECK_ARG(!drop_and_pad || each <= count, kOp, "num_out_tokens", "expected a capacity of at most ", count,
                " tokens for each of ", experts, " experts, got ", each);

  const npu_dtype dtype = dtype_of(tokens);
  Tensor packed = as_contiguous(tokens), map = as_contiguous(routing_map);
  OptionalTensor packed_probs = as_contiguous(probs);
  Tensor out = allocate({rows, tokens.size(1)}, dtype, device);
  Tensor sorted_indices = allocate({rows}, NPU_INT32, device);
  Tensor permuted_probs = probs.has_value() ? allocate({rows}, dtype_of(*probs), device) : no_tensor();
  Tensor scratch =
      allocate({drop_and_pad ? experts : rows + sort_scratch(rows, static_cast<uint64_t>(experts))}, NPU_INT32, device);
  if (count > 0) {
    auto* sorted = static_cast<int32_t*>(sorted_indices.data_ptr());
    auto* memory = static_cast<int32_t*>(scratch.data_ptr());
    const int64_t row_bytes = tokens.size(1) * npu_dtype_size(dtype);
    PermuteTask task{
        &kRowsTables.active(),
        {packed.data_ptr(), sorted, out.data_ptr(), row_bytes, each, rows, rows * row_bytes >= NPU_STREAM_BYTES},
        {static_cast<const uint8_t*>(map.data_ptr()), count, experts, each},
        pointer_or_null(packed_probs),
        probs.has_value() ? permuted_probs.data_ptr() : nullptr,
        sorted,
        memory,
        drop_and_pad ? memory : memory + rows,
        rows,
        each,
        probs.has_value() ? npu_dtype_size(dtype_of(*probs)) : 0,
        drop_and_pad};
    npu_access probs_access = probs.has_value() ? writes(permuted_probs) : npu_access{nullptr, 0, 0, 0};
    launch(device, "npu::npu_moe_token_permute_with_routing_map", run_permute, task,
           {reads(packed), reads(map), reads(packed_probs), writes(out), writes(sorted_indices), probs_access,
            writes(scratch)});
  }
  return {out, permuted_probs, sorted_indices};
}

struct PermuteGradTask {
  const MoeRowsKernels* kernels;
  MoeCombine sum;
  RoutingMap map;
  const void* grad_probs;
  void *out_probs, *lists;
  const int32_t* sorted_indices;
  int32_t* experts;
  int64_t rows, capacity, element_size;
  bool padded, with_probs;  // an empty tensor may have no address: pointers do not tell
};

npu_status run_permute_grad(void* payload, npu_error* error) {
  const auto& task = *static_cast<const PermuteGradTask*>(payload);
  const RoutingMap& map = task.map;
  MoeCombine sum = task.sum;
  npu_status status = check_index("sorted_indices", task.sorted_indices, NPU_INT32, task.rows, 0,
                                  task.padded ? map.tokens : task.rows, error);
  if (status != NPU_OK) return status;
  if (task.with_probs) {
    std::memset(task.out_probs, 0, static_cast<size_t>(map.tokens * map.experts * task.element_size));
    if (task.padded) {
      for (int64_t i = 0; i < task.rows; ++i) {
        copy_element(task.out_probs, task.sorted_indices[i] * map.experts + i / task.capacity, task.grad_probs, i,
                     task.element_size);
      }
    } else {
      status = find_experts(map, task.experts, error);
      if (status != NPU_OK) return status;
      for (int64_t slot = 0; slot < task.rows; ++slot) {
        copy_element(task.out_probs, slot / map.ranks * map.experts + task.experts[slot], task.grad_probs,
                     task.sorted_indices[slot], task.element_size);
      }
    }
  }
  if (task.padded) {
    TokenLists lists(task.lists, task.rows, map.tokens);
    status = lists.fill(task.sorted_indices, NPU_INT32, task.rows, map.tokens, error);
    if (status != NPU_OK) return status;
    sum.index = lists.items;
    sum.offsets = lists.offsets;
  }
  return run_combine(*task.kernels, sum, map.tokens, task.rows, error);
}

std::tuple<Tensor, Tensor> permute_grad(const Tensor& grad, const OptionalTensor& probs_grad,
                                        const Tensor& sorted_indices, const Tensor& routing_map, int64_t experts,
                                        int64_t tokens, bool drop_and_pad) {
  constexpr const char* kOp = "npu_moe_token_permute_with_routing_map_grad";
  const Device device = device_of(grad);
  check_same_device(kOp, device, "probs_grad", probs_grad);
  check_same_device(kOp, device, "sorted_indices", sorted_indices);
  check_same_device(kOp, device, "routing_map", routing_map);
  check_float_rows(kOp, "permuted_token_out_grad", grad);
  check_dims(kOp, "permuted_token_out_grad", grad, 2);
  check_map(kOp, routing_map);
  check_dtype(kOp, "sorted_indices", sorted_indices, {NPU_INT32});
  const int64_t rows = grad.size(0), parts = drop_and_pad ? experts : tokens, each = parts > 0 ? rows / parts : 0;
  const int64_t map_sizes[] = {tokens, experts}, row_sizes[] = {rows};
  check_sizes(kOp, "routing_map", routing_map, Sizes(map_sizes, 2), "(tokens_num, experts_num)");
  check_sizes(kOp, "sorted_indices", sorted_indices, Sizes(row_sizes, 1), "(rows of permuted_token_out_grad)");
  NPU_CHECK_ARG(rows <= INT32_MAX, kOp, "permuted_token_out_grad", "expected fewer than 2^31 rows, got ", rows);
  NPU_CHECK_ARG(each * parts == rows, kOp, "permuted_token_out_grad", "expected a multiple of ", parts, " rows, got ",
                rows);
  if (probs_grad.has_value()) {
    check_weights(kOp, "probs_grad", *probs_grad);
    if (tokens > 0 || rows > 0) {
      check_sizes(kOp, "probs_grad", *probs_grad, Sizes(row_sizes, 1), "(rows of permuted_token_out_grad)");
    }
  }

  const npu_dtype dtype = dtype_of(grad);
  Tensor packed = as_contiguous(grad), positions = as_contiguous(sorted_indices), map = as_contiguous(routing_map);
  OptionalTensor packed_probs = as_contiguous(probs_grad);
  Tensor out = allocate({tokens, grad.size(1)}, dtype, device);
  Tensor out_probs = probs_grad.has_value() ? allocate({tokens, experts}, dtype_of(*probs_grad), device) : no_tensor();
  Tensor scratch = allocate({drop_and_pad ? TokenLists::scratch(rows, tokens) : rows}, NPU_INT32, device);
  PermuteGradTask task{&kRowsTables.active(),
                       {},
                       {static_cast<const uint8_t*>(map.data_ptr()), tokens, experts, each},
                       pointer_or_null(packed_probs),
                       probs_grad.has_value() ? out_probs.data_ptr() : nullptr,
                       scratch.data_ptr(),
                       static_cast<const int32_t*>(positions.data_ptr()),
                       static_cast<int32_t*>(scratch.data_ptr()),
                       rows,
                       each,
                       probs_grad.has_value() ? npu_dtype_size(dtype_of(*probs_grad)) : 0,
                       drop_and_pad,
                       probs_grad.has_value()};
  MoeCombine& sum = task.sum;
  sum.rows = packed.data_ptr();
  sum.index = positions.data_ptr();
  sum.out = out.data_ptr();
  sum.row_count = rows;
  sum.columns = grad.size(1);
  sum.ranks = sum.token_step = each;
  sum.rank_step = 1;
  sum.dtype = sum.out_dtype = dtype;
  sum.index_dtype = NPU_INT32;
  npu_access probs_access = probs_grad.has_value() ? writes(out_probs) : npu_access{nullptr, 0, 0, 0};
  launch(
      device, "npu::npu_moe_token_permute_with_routing_map_grad", run_permute_grad, task,
      {reads(packed), reads(packed_probs), reads(positions), reads(map), writes(out), probs_access, writes(scratch)});
  return {out, out_probs};
}

// ---- unpermute --------------------------------------------------------------------------------------------------

struct UnpermuteTask {
  const MoeRowsKernels* kernels;
  MoeCombine sum;
  RoutingMap map;
  const void* probs;
  void* permute_probs;  // slot -> probability
  void* lists;
  int32_t* experts;
  int32_t *out_index, *permuted_token_id;  // NULL: not wanted
  int64_t rows, capacity, element_size;
  npu_dtype probs_dtype;
  bool padded, weighted;  // an empty tensor may have no address: pointers do not tell
};

npu_status run_unpermute(void* payload, npu_error* error) {
  const auto& task = *static_cast<const UnpermuteTask*>(payload);
  const RoutingMap& map = task.map;
  MoeCombine sum = task.sum;
  const void* token_of_row = sum.index;  // where padded
  const npu_dtype index_dtype = sum.index_dtype;
  npu_status status =
      check_index("sorted_indices", sum.index, index_dtype, task.rows, 0, task.padded ? map.tokens : task.rows, error);
  if (status != NPU_OK) return status;
  if (task.weighted && task.padded) {
    for (int64_t i = 0; i < task.rows; ++i) {
      copy_element(task.permute_probs, i, task.probs,
                   index_at(token_of_row, index_dtype, i) * map.experts + i / task.capacity, task.element_size);
    }
  } else if (task.weighted) {
    status = find_experts(map, task.experts, error);
    if (status != NPU_OK) return status;
    for (int64_t slot = 0; slot < task.rows; ++slot) {
      copy_element(task.permute_probs, slot, task.probs, slot / map.ranks * map.experts + task.experts[slot],
                   task.element_size);
    }
  } else if (task.permute_probs != nullptr) {
    fill_ones(task.permute_probs, task.probs_dtype, task.rows);
  }
  if (task.padded) {
    TokenLists lists(task.lists, task.rows, map.tokens);
    status = lists.fill(token_of_row, index_dtype, task.rows, map.tokens, error);
    if (status != NPU_OK) return status;
    sum.index = lists.items;
    sum.index_dtype = NPU_INT32;
    sum.offsets = lists.offsets;
    if (task.out_index != nullptr) {
      std::memcpy(task.out_index, lists.items, static_cast<size_t>(task.rows) * sizeof(int32_t));
      for (int64_t i = 0; i < task.rows; ++i) {
        task.permuted_token_id[i] = static_cast<int32_t>(index_at(token_of_row, index_dtype, lists.items[i]));
      }
    }
  } else if (task.out_index != nullptr) {
    std::memset(task.out_index, -1, static_cast<size_t>(task.rows) * sizeof(int32_t));
    std::memset(task.permuted_token_id, -1, static_cast<size_t>(task.rows) * sizeof(int32_t));
  }
  return run_combine(*task.kernels, sum, map.tokens, task.rows, error);
}

struct Unpermuted {
  Tensor out, out_index, permuted_token_id, permute_probs;
};

/// `all`: whether the last three are wanted.
Unpermuted unpermute_as(const char* op, const char* name, const Tensor& permuted_tokens, const Tensor& sorted_indices,
                        const std::vector<int64_t>& restore_shape, const OptionalTensor& probs,
                        const OptionalTensor& routing_map, bool padded, bool all) {
  const Device device = device_of(permuted_tokens);
  check_same_device(op, device, "sorted_indices", sorted_indices);
  check_same_device(op, device, "probs", probs);
  check_same_device(op, device, "routing_map", routing_map);
  check_float_rows(op, "permuted_tokens", permuted_tokens);
  check_dims(op, "permuted_tokens", permuted_tokens, 2);
  check_dtype(op, "sorted_indices", sorted_indices, {NPU_INT32, NPU_INT64});
  const int64_t rows = permuted_tokens.size(0), columns = permuted_tokens.size(1);
  NPU_CHECK_ARG(restore_shape.size() >= 2 && restore_shape[0] >= 0 && restore_shape[1] == columns, op, "restore_shape",
                "expected [tokens, ", columns, "], got ",
                shape_text(Sizes(restore_shape.data(), restore_shape.size())));
  const int64_t tokens = restore_shape[0], row_sizes[] = {rows};
  check_sizes(op, "sorted_indices", sorted_indices, Sizes(row_sizes, 1), "(rows of permuted_tokens)");
  NPU_CHECK_ARG(rows <= INT32_MAX, op, "permuted_tokens", "expected fewer than 2^31 rows, got ", rows);
  NPU_CHECK_ARG(!probs.has_value() || routing_map.has_value(), op, "routing_map",
                "expected the map of tokens and experts, which probs needs, got None");
  int64_t experts = 0;
  if (tokens == 0 && rows == 0) {  // the shapes of what is optional do not matter
    if (probs.has_value()) check_weights(op, "probs", *probs);
    if (routing_map.has_value()) check_dtype(op, "routing_map", *routing_map, {NPU_BOOL, NPU_INT8, NPU_UINT8});
  } else if (routing_map.has_value()) {
    check_map(op, *routing_map);
    experts = routing_map->size(1);
    NPU_CHECK_ARG(routing_map->size(0) == tokens, op, "routing_map", "expected ", tokens,
                  " rows, one for each token, got shape ", shape_text(routing_map->sizes()));
  }
  if (probs.has_value() && (tokens > 0 || rows > 0)) {
    check_weights(op, "probs", *probs);
    check_sizes(op, "probs", *probs, routing_map->sizes(), "(tokens, experts)");
  }
  int64_t each = 0;
  if (!padded || routing_map.has_value()) {
    const int64_t parts = padded ? experts : tokens;
    each = parts > 0 ? rows / parts : 0;
    NPU_CHECK_ARG(each * parts == rows, op, "permuted_tokens", "expected a multiple of ", parts, " rows, one part for ",
                  padded ? "each expert" : "each token", ", got ", rows);
  }

  const npu_dtype dtype = dtype_of(permuted_tokens), probs_dtype = dtype_or(probs, dtype);
  Tensor packed = as_contiguous(permuted_tokens), positions = as_contiguous(sorted_indices);
  OptionalTensor map = probs.has_value() ? as_contiguous(routing_map) : std::nullopt,
                 packed_probs = as_contiguous(probs);
  Tensor out = allocate({tokens, columns}, dtype, device);
  OptionalTensor permute_probs, out_index, permuted_token_id;
  if (all || probs.has_value()) permute_probs = allocate({rows}, probs_dtype, device);
  if (all) {
    out_index = allocate({rows}, NPU_INT32, device);
    permuted_token_id = allocate({rows}, NPU_INT32, device);
  }
  const int64_t scratch_size = padded ? TokenLists::scratch(rows, tokens) : probs.has_value() ? rows : 0;
  Tensor scratch = allocate({scratch_size}, NPU_INT32, device);
  if (tokens > 0 || rows > 0) {
    UnpermuteTask task{&kRowsTables.active(),
                       {},
                       {static_cast<const uint8_t*>(pointer_or_null(map)), tokens, experts, each},
                       pointer_or_null(packed_probs),
                       pointer_or_null(permute_probs),
                       scratch.data_ptr(),
                       static_cast<int32_t*>(scratch.data_ptr()),
                       static_cast<int32_t*>(pointer_or_null(out_index)),
                       static_cast<int32_t*>(pointer_or_null(permuted_token_id)),
                       rows,
                       each,
                       npu_dtype_size(probs_dtype),
                       probs_dtype,
                       padded,
                       probs.has_value()};
    MoeCombine& sum = task.sum;
    sum.rows = packed.data_ptr();
    sum.index = positions.data_ptr();
    sum.weights = probs.has_value() ? permute_probs->data_ptr() : nullptr;
    sum.out = out.data_ptr();
    sum.row_count = rows;
    sum.columns = columns;
    sum.ranks = sum.token_step = each;
    sum.rank_step = 1;
    sum.dtype = sum.out_dtype = dtype;
    sum.index_dtype = dtype_of(positions);
    sum.weights_dtype = probs_dtype;
    auto written = [](const OptionalTensor& tensor) {
      return tensor.has_value() ? writes(*tensor) : npu_access{nullptr, 0, 0, 0};
    };
    launch(device, name, run_unpermute, task,
           {reads(packed), reads(positions), reads(packed_probs), reads(map), writes(out), written(out_index),
            written(permuted_token_id), written(permute_probs), writes(scratch)});
  }
  if (!all) return {out, out, out, out};
  return {out, *out_index, *permuted_token_id, *permute_probs};
}

Tensor unpermute(const Tensor& permuted_tokens, const Tensor& sorted_indices, std::vector<int64_t> restore_shape,
                 const OptionalTensor& probs, const OptionalTensor& routing_map, bool drop_and_pad) {
  return unpermute_as("npu_moe_token_unpermute_with_routing_map", "npu::npu_moe_token_unpermute_with_routing_map",
                      permuted_tokens, sorted_indices, restore_shape, probs, routing_map, drop_and_pad, false)
      .out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> internal_unpermute(const Tensor& permuted_tokens,
                                                              const Tensor& sorted_indices,
                                                              std::vector<int64_t> restore_shape,
                                                              const OptionalTensor& probs,
                                                              const OptionalTensor& routing_map, bool drop_and_pad) {
  Unpermuted all =
      unpermute_as("_npu_moe_token_unpermute_with_routing_map", "npu::_npu_moe_token_unpermute_with_routing_map",
                   permuted_tokens, sorted_indices, restore_shape, probs, routing_map, drop_and_pad, true);
  return {all.out, all.out_index, all.permuted_token_id, all.permute_probs};
}

struct UnpermuteGradTask {
  const MoeRowsKernels* kernels;
  MoeSpread work;  // token and rank of padded slots: permuted_token_id
  RoutingMap map;
  const void* probs;
  void *weights, *grad_probs;
  float* sums;  // where padded: grad_probs in float32
  int32_t *first, *next, *experts;
  int64_t rows, capacity, probs_size, grad_size, grad_bytes;
  bool padded, weighted;  // an empty tensor may have no address: pointers do not tell
};

/// A token may have several rows of one expert: the products of a pair are added, in the order of the slots.
template <class Pair>
npu_status add_products(const UnpermuteGradTask& task, const Pair& pair, npu_error* error) {
  const RoutingMap& map = task.map;
  const auto* products = static_cast<const float*>(task.work.products);
  std::memset(task.sums, 0, static_cast<size_t>(map.tokens * map.experts) * sizeof(float));
  for (int64_t slot = 0; slot < task.rows; ++slot) task.sums[pair(slot)] += products[slot];
  if (task.sums == task.grad_probs) return NPU_OK;
  MoeCombine convert{};
  convert.rows = task.sums;
  convert.out = task.grad_probs;
  convert.row_count = map.tokens;
  convert.columns = map.experts;
  convert.ranks = convert.token_step = convert.rank_step = 1;
  convert.dtype = NPU_FLOAT32;
  convert.out_dtype = task.work.dtype;
  return run_combine(*task.kernels, convert, map.tokens, map.tokens, error);
}

npu_status run_unpermute_grad(void* payload, npu_error* error) {
  const auto& task = *static_cast<const UnpermuteGradTask*>(payload);
  const RoutingMap& map = task.map;
  const MoeSpread& work = task.work;
  npu_status status = check_index("out_index", work.index, NPU_INT32, task.rows, 0, task.rows, error);
  if (status != NPU_OK) return status;
  if (task.padded) {
    status = check_index("permuted_token_id", work.token, NPU_INT32, task.rows, 0, map.tokens, error);
  } else if (task.weighted) {
    status = find_experts(map, task.experts, error);
  }
  if (status != NPU_OK) return status;
  const auto* row_of_slot = static_cast<const int32_t*>(work.index);
  auto pair = [&](int64_t slot) {  // element of probs that weighs the slot
    return task.padded ? work.token[slot] * map.experts + row_of_slot[slot] / task.capacity
                       : slot / map.ranks * map.experts + task.experts[slot];
  };
  if (task.weighted) {
    for (int64_t slot = 0; slot < task.rows; ++slot) {
      copy_element(task.weights, slot, task.probs, pair(slot), task.probs_size);
    }
  }
  status = run_spread(*task.kernels, work, task.first, task.next, task.rows, error);
  if (status != NPU_OK || !task.weighted) return status;
  if (task.padded && task.rows > 0) return add_products(task, pair, error);
  std::memset(task.grad_probs, 0, static_cast<size_t>(task.grad_bytes));
  for (int64_t slot = 0; slot < task.rows; ++slot) {
    copy_element(task.grad_probs, pair(slot), work.products, slot, task.grad_size);
  }
  return NPU_OK;
}

std::tuple<Tensor, Tensor> unpermute_grad(const Tensor& grad, const Tensor& out_index, const Tensor& permuted_token_id,
                                          const OptionalTensor& routing_map, const OptionalTensor& permuted_tokens,
                                          const OptionalTensor& probs, bool drop_and_pad,
                                          std::vector<int64_t> restore_shape) {
  constexpr const char* kOp = "npu_moe_token_unpermute_with_routing_map_grad";
  const Device device = device_of(grad);
  check_same_device(kOp, device, "out_index", out_index);
  check_same_device(kOp, device, "permuted_token_id", permuted_token_id);
  check_same_device(kOp, device, "routing_map", routing_map);
  check_same_device(kOp, device, "permuted_tokens", permuted_tokens);
  check_same_device(kOp, device, "probs", probs);
  check_float_rows(kOp, "unpermuted_tokens_grad", grad);
  check_dims(kOp, "unpermuted_tokens_grad", grad, 2);
  const int64_t columns = grad.size(1), rows = out_index.numel(), tokens = grad.size(0);
  NPU_CHECK_ARG(restore_shape.size() >= 2 && restore_shape[0] == tokens && restore_shape[1] == columns, kOp,
                "restore_shape", "expected ", shape_text(grad.sizes()), " as unpermuted_tokens_grad has, got ",
                shape_text(Sizes(restore_shape.data(), restore_shape.size())));
  check_dtype(kOp, "out_index", out_index, {NPU_INT32});
  check_dims(kOp, "out_index", out_index, 1);
  NPU_CHECK_ARG(rows <= INT32_MAX, kOp, "out_index", "expected fewer than 2^31 elements, got ", rows);
  check_dtype(kOp, "permuted_token_id", permuted_token_id, {NPU_INT32});
  check_sizes(kOp, "permuted_token_id", permuted_token_id, out_index.sizes(), "(as out_index)");
  const npu_dtype dtype = dtype_of(grad);
  NPU_CHECK_ARG(!probs.has_value() || routing_map.has_value(), kOp, "routing_map",
                "expected the map of tokens and experts, which probs needs, got None");
  NPU_CHECK_ARG(!probs.has_value() || permuted_tokens.has_value(), kOp, "permuted_tokens",
                "expected the tensor that was unpermuted, which the gradient of probs needs, got None");
  const bool empty = tokens == 0 && rows == 0;  // then the shapes of what is optional do not matter
  int64_t experts = 0;
  if (probs.has_value() && empty) {
    check_dtype(kOp, "routing_map", *routing_map, {NPU_BOOL, NPU_INT8, NPU_UINT8});
    check_weights(kOp, "probs", *probs);
    check_dtype(kOp, "permuted_tokens", *permuted_tokens, {dtype});
  } else if (probs.has_value()) {
    check_map(kOp, *routing_map);
    experts = routing_map->size(1);
    const int64_t map_sizes[] = {tokens, experts}, expected[] = {rows, columns};
    check_sizes(kOp, "routing_map", *routing_map, Sizes(map_sizes, 2), "(tokens, experts)");
    check_weights(kOp, "probs", *probs);
    check_sizes(kOp, "probs", *probs, Sizes(map_sizes, 2), "(tokens, experts)");
    check_dtype(kOp, "permuted_tokens", *permuted_tokens, {dtype});
    check_sizes(kOp, "permuted_tokens", *permuted_tokens, Sizes(expected, 2), "(rows, hidden)");
  }
  int64_t each = 0;
  if (!drop_and_pad || (probs.has_value() && !empty)) {
    const int64_t parts = drop_and_pad ? experts : tokens;
    each = parts > 0 ? rows / parts : 0;
    NPU_CHECK_ARG(each * parts == rows, kOp, "out_index", "expected a multiple of ", parts, " elements, one part for ",
                  drop_and_pad ? "each expert" : "each token", ", got ", rows);
  }

  Tensor upstream = as_contiguous(grad), positions = as_contiguous(out_index), ids = as_contiguous(permuted_token_id);
  OptionalTensor packed = probs.has_value() ? as_contiguous(permuted_tokens) : std::nullopt,
                 map = probs.has_value() ? as_contiguous(routing_map) : std::nullopt,
                 packed_probs = as_contiguous(probs);
  Tensor out = allocate({rows, columns}, dtype, device);
  Tensor grad_probs = probs.has_value() ? npu::kernels::allocate(probs->sizes(), dtype, device) : no_tensor();
  OptionalTensor weights, products, sums;
  const npu_dtype products_dtype = drop_and_pad ? NPU_FLOAT32 : dtype;
  if (probs.has_value()) {
    weights = allocate({rows}, dtype_of(*probs), device);
    products = allocate({rows}, products_dtype, device);
    if (drop_and_pad) sums = dtype == NPU_FLOAT32 ? grad_probs : allocate({tokens, experts}, NPU_FLOAT32, device);
  }
  Tensor scratch = allocate({3 * rows}, NPU_INT32, device);
  auto* memory = static_cast<int32_t*>(scratch.data_ptr());
  UnpermuteGradTask task{&kRowsTables.active(),
                         {},
                         {static_cast<const uint8_t*>(pointer_or_null(map)), tokens, experts, each},
                         pointer_or_null(packed_probs),
                         pointer_or_null(weights),
                         probs.has_value() ? grad_probs.data_ptr() : nullptr,
                         static_cast<float*>(pointer_or_null(sums)),
                         memory,
                         memory + rows,
                         memory + 2 * rows,
                         rows,
                         each,
                         npu_dtype_size(dtype_or(probs, dtype)),
                         npu_dtype_size(dtype),
                         probs.has_value() ? bytes_of(grad_probs) : 0,
                         drop_and_pad,
                         probs.has_value()};
  MoeSpread& work = task.work;
  work.upstream = upstream.data_ptr();
  work.rows = pointer_or_null(packed);
  work.index = positions.data_ptr();
  work.token = drop_and_pad ? static_cast<const int32_t*>(ids.data_ptr()) : nullptr;
  work.weights = pointer_or_null(weights);
  work.first = task.first;
  work.next = task.next;
  work.out = out.data_ptr();
  work.products = pointer_or_null(products);
  work.row_count = rows;
  work.columns = columns;
  work.ranks = each;
  work.dtype = work.upstream_dtype = dtype;
  work.products_dtype = products_dtype;
  work.index_dtype = NPU_INT32;
  work.weights_dtype = dtype_or(probs, NPU_FLOAT32);
  work.stream = streams_rows(out, columns * npu_dtype_size(dtype));
  auto written = [](bool exists, const Tensor& tensor) {
    return exists ? writes(tensor) : npu_access{nullptr, 0, 0, 0};
  };
  launch(device, "npu::npu_moe_token_unpermute_with_routing_map_grad", run_unpermute_grad, task,
         {reads(upstream), reads(positions), reads(ids), reads(map), reads(packed), reads(packed_probs), writes(out),
          written(probs.has_value(), grad_probs), written(probs.has_value(), weights.value_or(out)),
          written(probs.has_value(), products.value_or(out)), written(sums.has_value(), sums.value_or(out)),
          writes(scratch)});
  return {out, grad_probs};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def(
      "npu_moe_token_permute_with_routing_map(Tensor tokens, Tensor routing_map, *, Tensor? probs=None, "
      "int? num_out_tokens=None, bool drop_and_pad=False) -> (Tensor, Tensor, Tensor)");
  m.def(
      "npu_moe_token_permute_with_routing_map_grad(Tensor permuted_token_out_grad, Tensor? probs_grad, "
      "Tensor sorted_indices, Tensor routing_map, SymInt experts_num, SymInt tokens_num, bool drop_and_pad) -> "
      "(Tensor, Tensor)");
  m.def(
      "npu_moe_token_unpermute_with_routing_map(Tensor permuted_tokens, Tensor sorted_indices, int[] restore_shape, *, "
      "Tensor? probs=None, Tensor? routing_map=None, bool drop_and_pad=False) -> Tensor");
  m.def(
      "_npu_moe_token_unpermute_with_routing_map(Tensor permuted_tokens, Tensor sorted_indices, int[] restore_shape, "
      "*, Tensor? probs=None, Tensor? routing_map=None, bool drop_and_pad=False) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "npu_moe_token_unpermute_with_routing_map_grad(Tensor unpermuted_tokens_grad, Tensor out_index, "
      "Tensor permuted_token_id, Tensor? routing_map, Tensor? permuted_tokens, Tensor? probs, bool drop_and_pad, "
      "int[] restore_shape) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_moe_token_permute_with_routing_map", TORCH_BOX(&permute));
  m.impl("npu_moe_token_permute_with_routing_map_grad", TORCH_BOX(&permute_grad));
  m.impl("npu_moe_token_unpermute_with_routing_map", TORCH_BOX(&unpermute));
  m.impl("_npu_moe_token_unpermute_with_routing_map", TORCH_BOX(&internal_unpermute));
  m.impl("npu_moe_token_unpermute_with_routing_map_grad", TORCH_BOX(&unpermute_grad));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_moe_token_permute_with_routing_map", TORCH_BOX(&permute));
  m.impl("npu_moe_token_permute_with_routing_map_grad", TORCH_BOX(&permute_grad));
  m.impl("npu_moe_token_unpermute_with_routing_map", TORCH_BOX(&unpermute));
  m.impl("_npu_moe_token_unpermute_with_routing_map", TORCH_BOX(&internal_unpermute));
  m.impl("npu_moe_token_unpermute_with_routing_map_grad", TORCH_BOX(&unpermute_grad));
}

}  // namespace npu::ops_llm
