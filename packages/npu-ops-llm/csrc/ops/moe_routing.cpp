// Routing of tokens to experts: schemas, checks and tasks.  Fake kernels: src/npu_ops_llm/moe_routing.py.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <tuple>
#include <vector>

#include "../kernels/moe_routing.h"
#include "npu/kernels/counting_sort.h"
#include "npu/kernels/deprecation.h"
#include "npu/kernels/dtype_argument.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/stable_tensor.h"
#include "npu/kernels/streaming.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<MoeRoutingKernels> kTables = {{
    &moe_routing_kernels_base,
#if defined(__x86_64__)
    &moe_routing_kernels_avx2,
    &moe_routing_kernels_avx512,
    &moe_routing_kernels_avx512_bf16,
#endif
}};

constexpr npu_dtype kFloat8E8m0 = 44;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Elements of 4 bytes in `bytes`, as grain_for counts work.
int64_t work_of(int64_t bytes) { return bytes / 4 + 8; }

Tensor allocate_words(int64_t words, const Device& device) { return allocate(Sizes(&words, 1), NPU_INT64, device); }

void check_expanded_rows(const char* op, int64_t rows) {
  NPU_CHECK_ARG(rows <= INT32_MAX, op, "expert_idx", "expected at most 2147483647 expanded rows, got ", rows);
}

// ---- npu_moe_init_routing -------------------------------------------------------------------------------------------

struct InitRoutingTask {
  const MoeRoutingKernels* kernels;
  const char* x;
  const int32_t *row_idx, *expert_idx;
  char* expanded_x;
  int32_t *expanded_row_idx, *expanded_expert_idx;
  int32_t *positions, *sort_memory;
  int64_t tokens, slots, limit, row_bytes;
};

npu_status run_init_routing(void* payload, npu_error* error) {
  const auto& task = *static_cast<const InitRoutingTask*>(payload);
  npu_status status =
      stable_argsort(task.expert_idx, task.slots, {nullptr, task.positions, nullptr, task.sort_memory}, error);
  if (status != NPU_OK) return status;
  std::atomic<int64_t> bad{task.slots};
  auto indices = [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const int64_t row = task.row_idx[slot], position = task.positions[slot];
      task.expanded_expert_idx[position] = task.expert_idx[slot];
      if (row >= 0 && row < task.slots) {
        task.expanded_row_idx[row] = static_cast<int32_t>(position);
        continue;
      }
      int64_t first = bad.load();
      while (slot < first && !bad.compare_exchange_weak(first, slot)) {
      }
    }
  };
  std::memset(task.expanded_row_idx, 0xff, static_cast<size_t>(task.slots) * sizeof(int32_t));
  status = parallel_for(task.slots, grain_for(4), indices, error);
  if (status != NPU_OK) return status;
  if (bad.load() < task.slots) {
    std::snprintf(error->message, sizeof(error->message),
                  "argument row_idx: expected a permutation of 0 to %lld, got %d at position %lld",
                  static_cast<long long>(task.slots - 1), task.row_idx[bad.load()], static_cast<long long>(bad.load()));
    return NPU_ERROR_INDEX;
  }
  const bool streamed = task.limit * task.row_bytes >= NPU_STREAM_BYTES;
  auto rows = [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const int64_t position = task.positions[slot], source = task.row_idx[slot] % task.tokens;
      if (position >= task.limit) continue;
      task.kernels->copy(task.expanded_x + position * task.row_bytes, task.x + source * task.row_bytes, task.row_bytes,
                         streamed);
    }
    if (streamed) npu_stream_fence();
  };
  return parallel_for(task.slots, grain_for(work_of(task.row_bytes)), rows, error);
}

std::tuple<Tensor, Tensor, Tensor> init_routing(const Tensor& x, const Tensor& row_idx, const Tensor& expert_idx,
                                                int64_t active_num) {
  constexpr const char* kOp = "npu_moe_init_routing";
  static std::atomic<bool> warned{false};
  warn_deprecated_once(warned, kOp, " Please use npu_moe_init_routing_v2 instead.");
  Device device = device_of(x);
  check_same_device(kOp, device, "row_idx", row_idx);
  check_same_device(kOp, device, "expert_idx", expert_idx);
  NPU_CHECK_ARG(x.dim() == 2, kOp, "x", "expected 2 dims, (tokens, hidden), got shape ", shape_text(x.sizes()));
  NPU_CHECK_ARG(expert_idx.dim() == 2, kOp, "expert_idx", "expected 2 dims, (tokens, k), got shape ",
                shape_text(expert_idx.sizes()));
  check_sizes(kOp, "row_idx", row_idx, expert_idx.sizes(), "(as expert_idx)");
  check_dtype(kOp, "x", x, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  check_dtype(kOp, "row_idx", row_idx, {NPU_INT32});
  check_dtype(kOp, "expert_idx", expert_idx, {NPU_INT32});
  NPU_CHECK_ARG(x.sizes()[0] == expert_idx.sizes()[0], kOp, "x", "expected as many rows as expert_idx has, ",
                expert_idx.sizes()[0], ", got ", x.sizes()[0]);
  NPU_CHECK_ARG(active_num >= 0, kOp, "active_num", "expected 0 or more tokens, got ", active_num);
  int64_t tokens = x.sizes()[0], columns = x.sizes()[1], k = expert_idx.sizes()[1], slots = tokens * k;
  check_expanded_rows(kOp, slots);
  Tensor in = as_contiguous(x), rows = as_contiguous(row_idx), experts = as_contiguous(expert_idx);
  int64_t expanded_sizes[] = {std::min(tokens, active_num) * k, columns};
  Tensor expanded_x = allocate(Sizes(expanded_sizes, 2), dtype_of(x), device);
  Tensor expanded_row_idx = allocate(Sizes(&slots, 1), NPU_INT32, device);
  Tensor expanded_expert_idx = allocate(Sizes(&slots, 1), NPU_INT32, device);
  if (slots == 0) return {expanded_x, expanded_row_idx, expanded_expert_idx};
  Tensor scratch = allocate_words(ceil_div(slots + sort_scratch(slots, kAnyRange), 2), device);
  auto* positions = static_cast<int32_t*>(scratch.data_ptr());
  InitRoutingTask task{&kTables.active(),
                       static_cast<const char*>(in.data_ptr()),
                       static_cast<const int32_t*>(rows.data_ptr()),
                       static_cast<const int32_t*>(experts.data_ptr()),
                       static_cast<char*>(expanded_x.data_ptr()),
                       static_cast<int32_t*>(expanded_row_idx.data_ptr()),
                       static_cast<int32_t*>(expanded_expert_idx.data_ptr()),
                       positions,
                       positions + slots,
                       tokens,
                       slots,
                       expanded_sizes[0],
                       columns * static_cast<int64_t>(x.element_size())};
  launch(device, "npu::npu_moe_init_routing", run_init_routing, task,
         {reads(in), reads(rows), reads(experts), writes(expanded_x), writes(expanded_row_idx),
          writes(expanded_expert_idx), writes(scratch)});
  return {expanded_x, expanded_row_idx, expanded_expert_idx};
}

// ---- npu_moe_init_routing_v2 ----------------------------------------------------------------------------------------

struct InitRoutingV2Task {
  const MoeRoutingKernels* kernels;
  MoeQuantise rows;        // targets and limit are filled in by the task
  const char* scale;       // rows.scale_bytes per token, or NULL; for copied rows
  int32_t* row_idx;        // output
  int64_t* expert_tokens;  // output
  int64_t *counts, *starts;
  int32_t *positions, *sort_memory;  // positions is the output where that holds positions
  int64_t tokens, slots, allocated;  // allocated rows
  int64_t first, last, experts, capacity;
  int32_t drop_pad, scatter, count_type, counted;
};

/// The sort counts its keys in passing where it has one pass.  Of more keys those in range are counted afterwards, so
/// memory does not grow with the experts elsewhere.
bool counts_while_sorting(int64_t keys) { return sort_passes(static_cast<uint64_t>(keys)) == 1; }

void write_expert_tokens(const InitRoutingV2Task& task) {
  const int64_t count = task.last - task.first;
  if (task.count_type == 2) {
    std::memset(task.expert_tokens, 0, static_cast<size_t>(task.experts) * 2 * sizeof(int64_t));
  } else if (!task.counted) {
    std::memset(task.expert_tokens, 0, static_cast<size_t>(count) * sizeof(int64_t));
  }
  if (!task.counted) return;
  int64_t sum = 0, used = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += task.counts[i];
    if (task.count_type == 0) task.expert_tokens[i] = sum;
    else if (task.count_type == 1) task.expert_tokens[i] = task.counts[i];
    else if (task.counts[i] > 0) {
      task.expert_tokens[2 * used] = task.first + i;
      task.expert_tokens[2 * used++ + 1] = task.counts[i];
    }
  }
}

npu_status run_init_routing_v2(void* payload, npu_error* error) {
  const auto& task = *static_cast<const InitRoutingV2Task*>(payload);
  const int32_t* experts = task.rows.experts;
  const int64_t first = task.first, last = task.last;
  // In range and above in order, then what is no expert, then what lies below: the order that the definition gives.
  const uint64_t range = static_cast<uint64_t>(task.experts - first) + 2;
  auto key = [=, end = task.experts](int64_t slot) {
    const int64_t expert = experts[slot];
    return static_cast<uint64_t>(expert < first ? end - first + 1 : std::min(expert, end) - first);
  };
  int32_t* order = task.scatter ? task.row_idx : nullptr;
  const bool counted = counts_while_sorting(static_cast<int64_t>(range));
  npu_status status = counting_sort(task.slots, range, key,
                                    {order, task.positions, counted ? task.counts : nullptr, task.sort_memory}, error);
  if (status != NPU_OK) return status;
  if (!counted) {
    std::memset(task.counts, 0, static_cast<size_t>(last - first) * sizeof(int64_t));
    for (int64_t slot = 0; slot < task.slots; ++slot) {
      if (experts[slot] >= first && experts[slot] < last) ++task.counts[experts[slot] - first];
    }
  }
  int64_t available = 0;
  for (int64_t i = 0; i < last - first; ++i) {
    task.starts[i] = available;
    available += task.counts[i];
  }
  write_expert_tokens(task);

  if (!task.scatter) {
    auto indices = [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) {
        int64_t position = task.positions[slot];
        if (position >= available) {
          position = -1;
        } else if (task.drop_pad) {
          const int64_t expert = experts[slot] - first, place = position - task.starts[expert];
          position = place < task.capacity ? expert * task.capacity + place : -1;
        }
        task.row_idx[slot] = static_cast<int32_t>(position);
      }
    };
    status = parallel_for(task.slots, grain_for(4), indices, error);
    if (status != NPU_OK) return status;
  }

  MoeQuantise rows = task.rows;
  rows.targets = task.scatter ? task.positions : task.row_idx;
  rows.limit = task.drop_pad ? task.allocated : std::min(task.allocated, available);
  auto* out = static_cast<char*>(rows.rows);
  auto* scales = static_cast<char*>(rows.scales);
  auto clear = [&](int64_t begin, int64_t end) {
    std::memset(out + begin * rows.row_bytes, 0, static_cast<size_t>((end - begin) * rows.row_bytes));
    std::memset(scales + begin * rows.scale_bytes, 0, static_cast<size_t>((end - begin) * rows.scale_bytes));
  };
  const int64_t row_work = work_of(rows.row_bytes);
  if (task.drop_pad) {
    auto padding = [&](int64_t begin, int64_t end) {
      for (int64_t expert = begin; expert < end; ++expert) {
        int64_t kept = std::min(task.counts[expert], task.capacity);
        clear(expert * task.capacity + kept, (expert + 1) * task.capacity);
      }
    };
    status = parallel_for(task.experts, grain_for(row_work * task.capacity), padding, error);
  } else if (rows.limit < task.allocated) {
    auto tail = [&](int64_t begin, int64_t end) { clear(rows.limit + begin, rows.limit + end); };
    status = parallel_for(task.allocated - rows.limit, grain_for(row_work), tail, error);
  }
  if (status != NPU_OK) return status;
  const bool without_scales =
      (rows.format == NPU_ROUTE_COPY && task.scale == nullptr) || rows.format == NPU_ROUTE_STATIC_INT8;
  if (without_scales) std::memset(scales, 0, static_cast<size_t>(task.allocated * rows.scale_bytes));

  if (rows.format != NPU_ROUTE_COPY) {
    auto tokens = [&](int64_t begin, int64_t end) {
      task.kernels->quantise(&rows, begin, end);
      if (rows.streamed) npu_stream_fence();
    };
    return parallel_for(task.tokens, grain_for(rows.columns + rows.k * row_work), tokens, error);
  }
  auto slots = [&](int64_t begin, int64_t end) {
    const auto* x = static_cast<const char*>(rows.x);
    for (int64_t slot = begin; slot < end; ++slot) {
      const int64_t target = rows.targets[slot], token = slot / rows.k;
      if (target < 0 || target >= rows.limit) continue;
      task.kernels->copy(out + target * rows.row_bytes, x + token * rows.row_bytes, rows.row_bytes, rows.streamed);
      if (task.scale == nullptr) continue;
      std::memcpy(scales + target * rows.scale_bytes, task.scale + token * rows.scale_bytes,
                  static_cast<size_t>(rows.scale_bytes));
    }
    if (rows.streamed) npu_stream_fence();
  };
  return parallel_for(task.slots, grain_for(row_work), slots, error);
}

/// What a quant_mode makes of a row.
struct RowFormat {
  int32_t format;
  npu_dtype dtype, scale_dtype;
  int64_t columns;                   // of the expanded rows
  std::vector<int64_t> scale_sizes;  // of the scales of one row
  float least;
};

constexpr const char* kV2 = "npu_moe_init_routing_v2";

bool is_byte_type(npu_dtype dtype) {
  return dtype == NPU_UINT8 || dtype == NPU_FLOAT8_E4M3FN || dtype == NPU_FLOAT8_E5M2;
}

RowFormat row_format(int64_t quant_mode, npu_dtype x, int64_t columns) {
  bool e5m2 = quant_mode == 2 || quant_mode == 4 || quant_mode == 11 || quant_mode == 14 || quant_mode == 16;
  npu_dtype float8 = e5m2 ? NPU_FLOAT8_E5M2 : NPU_FLOAT8_E4M3FN;
  float least = quant_mode >= 14 ? 1e-4f : 0.0f;
  if (quant_mode != -1) {
    NPU_CHECK_ARG(x == NPU_FLOAT16 || x == NPU_BFLOAT16 || x == NPU_FLOAT32, kV2, "x",
                  "expected dtype float16, bfloat16 or float32 for quant_mode ", quant_mode, ", got ",
                  npu_dtype_name(x));
  }
  switch (quant_mode) {
    case -1:
      NPU_CHECK_ARG(x == NPU_FLOAT16 || x == NPU_BFLOAT16 || x == NPU_FLOAT32 || x == NPU_INT8 || is_byte_type(x), kV2,
                    "x", "expected dtype float16, bfloat16, float32, int8, uint8, float8_e5m2 or float8_e4m3fn, got ",
                    npu_dtype_name(x));
      return {NPU_ROUTE_COPY, x, NPU_FLOAT32, columns, {}, 0.0f};
    case 0:
      return {NPU_ROUTE_STATIC_INT8, NPU_INT8, NPU_FLOAT32, columns, {}, 0.0f};
    case 1:
      return {NPU_ROUTE_INT8, NPU_INT8, NPU_FLOAT32, columns, {}, 0.0f};
    case 2:
    case 3:
    case 16:
    case 17:
      return {NPU_ROUTE_MX, float8, kFloat8E8m0, columns, {(ceil_div(columns, 32) + 1) / 2 * 2}, least};
    case 4:
    case 5:
    case 14:
    case 15:
      return {NPU_ROUTE_POWER, float8, NPU_FLOAT32, columns, {ceil_div(columns, 128)}, least};
    case 11:
    case 12:
      return {NPU_ROUTE_LINEAR, float8, NPU_FLOAT32, columns, {ceil_div(columns, 256), 2}, 0.0f};
    case 13:
      return {NPU_ROUTE_INT4, NPU_UINT8, NPU_FLOAT32, columns / 2, {}, 0.0f};
    default:
      break;
  }
  NPU_CHECK_ARG(quant_mode < 6 || quant_mode > 9, kV2, "quant_mode", quant_mode,
                quant_mode == 9 ? " (MXFP4)" : " (hifloat8)",
                " is not supported on this device; use -1 (none), 0 or 1 (int8), 13 (int4) or one of the float8 modes");
  NPU_CHECK_ARG(false, kV2, "quant_mode", "expected -1, 0 to 5 or 11 to 17 except 9, got ", quant_mode);
  return {};
}

struct V2Arguments {
  int64_t active_num, expert_capacity, expert_num, drop_pad_mode, expert_tokens_num_type, quant_mode, row_idx_type;
  int64_t first, last;
};

void check_v2_numbers(const V2Arguments& a, int64_t tokens) {
  NPU_CHECK_ARG(a.active_num >= -1, kV2, "active_num", "expected -1 or 0 (all rows) or more, got ", a.active_num);
  NPU_CHECK_ARG(a.drop_pad_mode == 0 || a.drop_pad_mode == 1, kV2, "drop_pad_mode", "expected 0 or 1, got ",
                a.drop_pad_mode);
  NPU_CHECK_ARG(a.expert_tokens_num_type >= 0 && a.expert_tokens_num_type <= 2, kV2, "expert_tokens_num_type",
                "expected 0 (cumulative sums), 1 (counts) or 2 (experts and counts), got ", a.expert_tokens_num_type);
  NPU_CHECK_ARG(a.row_idx_type == 0 || a.row_idx_type == 1, kV2, "row_idx_type",
                "expected 0 (gather) or 1 (scatter), got ", a.row_idx_type);
  NPU_CHECK_ARG(0 <= a.first && a.first < a.last && a.last <= a.expert_num, kV2, "active_expert_range",
                "expected 0 <= begin < end <= expert_num, got [", a.first, ", ", a.last, "] with expert_num ",
                a.expert_num);
  NPU_CHECK_ARG(a.expert_num <= INT32_MAX, kV2, "expert_num", "expected at most 2147483647, got ", a.expert_num);
  if (a.drop_pad_mode == 0) return;
  NPU_CHECK_ARG(a.expert_capacity > 0 && (a.expert_capacity <= tokens || tokens == 0), kV2, "expert_capacity",
                "expected 1 to ", tokens, " (tokens) with drop_pad_mode 1, got ", a.expert_capacity);
  NPU_CHECK_ARG(a.first == 0 && a.last == a.expert_num, kV2, "active_expert_range", "expected [0, ", a.expert_num,
                "], all experts, with drop_pad_mode 1, got [", a.first, ", ", a.last, "]");
  NPU_CHECK_ARG(a.row_idx_type == 0, kV2, "row_idx_type", "expected 0 with drop_pad_mode 1, got ", a.row_idx_type);
  NPU_CHECK_ARG(a.expert_tokens_num_type == 1, kV2, "expert_tokens_num_type",
                "expected 1 (counts) with drop_pad_mode 1, got ", a.expert_tokens_num_type);
}

int64_t blocks_of_64(const Tensor& x, std::optional<int64_t> x_dtype) {
  bool packed = x_dtype.has_value() && (*x_dtype == 296 || *x_dtype == 297);
  return ceil_div(packed ? 2 * x.sizes()[1] : x.sizes()[1], 64);
}

/// Checks scale and offset; for copied rows also says what the scales of one row are.
void check_v2_scales(const V2Arguments& a, const Tensor& x, const OptionalTensor& scale, const OptionalTensor& offset,
                     std::optional<int64_t> x_dtype, RowFormat& format) {
  int64_t tokens = x.sizes()[0], columns = x.sizes()[1], local = a.last - a.first;
  if (a.quant_mode == 0) {
    NPU_CHECK_ARG(scale.has_value(), kV2, "scale", "expected one float32 number for quant_mode 0, got None");
    NPU_CHECK_ARG(offset.has_value(), kV2, "offset", "expected one float32 number for quant_mode 0, got None");
  }
  if (a.quant_mode == 13) {
    NPU_CHECK_ARG(a.drop_pad_mode == 0, kV2, "drop_pad_mode", "expected 0 with quant_mode 13 (int4), got 1");
    NPU_CHECK_ARG(!offset.has_value(), kV2, "offset", "expected None with quant_mode 13 (int4)");
    NPU_CHECK_ARG(columns % 2 == 0, kV2, "x", "expected an even hidden size for quant_mode 13 (int4), got ", columns);
    check_dtype(kV2, "x", x, {NPU_FLOAT32, NPU_BFLOAT16});
  }
  if (tokens == 0) {  // the shape of the scales does not matter, but the expanded ones have as many dims as ever
    bool blocks = scale.has_value() && a.quant_mode == -1 && is_byte_type(dtype_of(x)) && scale->dim() == 3;
    if (blocks && (dtype_of(*scale) == NPU_UINT8 || dtype_of(*scale) == kFloat8E8m0)) {
      format.scale_dtype = dtype_of(*scale);
      format.scale_sizes = {blocks_of_64(x, x_dtype), 2};
    }
    return;
  }
  if (a.quant_mode == 0) {
    check_dtype(kV2, "scale", *scale, {NPU_FLOAT32});
    check_dtype(kV2, "offset", *offset, {NPU_FLOAT32});
    NPU_CHECK_ARG(scale->numel() == 1, kV2, "scale", "expected shape [1] for quant_mode 0, got ",
                  shape_text(scale->sizes()));
    NPU_CHECK_ARG(offset->numel() == 1, kV2, "offset", "expected shape [1] for quant_mode 0, got ",
                  shape_text(offset->sizes()));
    return;
  }
  if (!scale.has_value()) return;
  if (a.quant_mode == 1 || a.quant_mode == 13) {
    check_dtype(kV2, "scale", *scale, {NPU_FLOAT32});
    Sizes sizes = scale->sizes();
    bool fits = sizes.size() == 2 && sizes[1] == columns && (sizes[0] == 1 || (a.quant_mode == 1 && sizes[0] == local));
    NPU_CHECK_ARG(fits, kV2, "scale", "expected shape [1, ", columns, "]",
                  a.quant_mode == 1 ? text(" or [", local, ", ", columns, "]") : std::string(), " for quant_mode ",
                  a.quant_mode, ", got ", shape_text(sizes));
    return;
  }
  if (a.quant_mode != -1) return;  // the float8 modes take no scale
  npu_dtype scale_dtype = dtype_of(*scale);
  if (is_byte_type(dtype_of(x)) && scale->dim() == 3) {
    int64_t expected[] = {tokens, blocks_of_64(x, x_dtype), 2};
    check_sizes(kV2, "scale", *scale, Sizes(expected, 3), "(tokens, blocks of 64, 2)");
    NPU_CHECK_ARG(scale_dtype == NPU_UINT8 || scale_dtype == kFloat8E8m0, kV2, "scale",
                  "expected dtype uint8 or float8_e8m0fnu, got ", npu_dtype_name(scale_dtype));
    format.scale_dtype = scale_dtype;
    format.scale_sizes = {expected[1], 2};
    return;
  }
  check_dtype(kV2, "scale", *scale, {NPU_FLOAT32});
  check_sizes(kV2, "scale", *scale, Sizes(&tokens, 1), "(tokens)");
}

void check_x_dtype(std::optional<int64_t> x_dtype, const Tensor& x, int64_t quant_mode) {
  if (!x_dtype.has_value()) return;
  NPU_CHECK_ARG(quant_mode != 1 || (*x_dtype != 285 && *x_dtype != NPU_QUINT4X2), kV2, "x_dtype",
                "int4 needs quant_mode 13, got quant_mode 1");
  bool packed = *x_dtype == 290 || *x_dtype == 296 || *x_dtype == 297;
  NPU_CHECK_ARG(packed ? dtype_of(x) == NPU_UINT8 && quant_mode == -1 : *x_dtype == dtype_of(x), kV2, "x_dtype",
                "expected the dtype of x, or hifloat8, float4_e2m1fn_x2 or float4_e1m2fn_x2 for uint8 with quant_mode "
                "-1, got ",
                dtype_argument_name(*x_dtype), " for x of ", npu_dtype_name(dtype_of(x)), " with quant_mode ",
                quant_mode);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> init_routing_v2(
    const Tensor& x, const Tensor& expert_idx, const OptionalTensor& scale, const OptionalTensor& offset,
    int64_t active_num, int64_t expert_capacity, int64_t expert_num, int64_t drop_pad_mode,
    int64_t expert_tokens_num_type, bool expert_tokens_num_flag, int64_t quant_mode,
    const std::vector<int64_t>& active_expert_range, int64_t row_idx_type, std::optional<int64_t> x_dtype) {
  Device device = device_of(x);
  check_same_device(kV2, device, "expert_idx", expert_idx);
  check_same_device(kV2, device, "scale", scale);
  check_same_device(kV2, device, "offset", offset);
  NPU_CHECK_ARG(x.dim() == 2, kV2, "x", "expected 2 dims, (tokens, hidden), got shape ", shape_text(x.sizes()));
  NPU_CHECK_ARG(expert_idx.dim() == 2, kV2, "expert_idx", "expected 2 dims, (tokens, k), got shape ",
                shape_text(expert_idx.sizes()));
  check_dtype(kV2, "expert_idx", expert_idx, {NPU_INT32});
  int64_t tokens = x.sizes()[0], columns = x.sizes()[1], k = expert_idx.sizes()[1], slots = tokens * k;
  NPU_CHECK_ARG(expert_idx.sizes()[0] == tokens, kV2, "expert_idx", "expected as many rows as x has, ", tokens,
                ", got ", expert_idx.sizes()[0]);
  NPU_CHECK_ARG(active_expert_range.empty() || active_expert_range.size() == 2, kV2, "active_expert_range",
                "expected no or 2 numbers, got ", active_expert_range.size());
  bool whole = active_expert_range.empty();
  V2Arguments arguments{active_num,
                        expert_capacity,
                        expert_num,
                        drop_pad_mode,
                        expert_tokens_num_type,
                        quant_mode,
                        row_idx_type,
                        whole ? 0 : active_expert_range[0],
                        whole ? expert_num : active_expert_range[1]};
  check_v2_numbers(arguments, tokens);
  check_x_dtype(x_dtype, x, quant_mode);
  RowFormat format = row_format(quant_mode, dtype_of(x), columns);
  check_v2_scales(arguments, x, scale, offset, x_dtype, format);

  bool drop_pad = drop_pad_mode == 1;
  int64_t local = arguments.last - arguments.first;
  int64_t allocated = drop_pad ? expert_num * expert_capacity : active_num > 0 ? std::min(active_num, slots) : slots;
  check_expanded_rows(kV2, std::max(slots, allocated));
  std::vector<int64_t> row_sizes = {allocated, format.columns}, scale_sizes = {allocated};
  if (drop_pad) row_sizes = {expert_num, expert_capacity, format.columns};
  scale_sizes.insert(scale_sizes.end(), format.scale_sizes.begin(), format.scale_sizes.end());
  int64_t pairs[] = {expert_num, 2};
  Tensor expanded_x = allocate(Sizes(row_sizes.data(), row_sizes.size()), format.dtype, device);
  Tensor expanded_row_idx = allocate(Sizes(&slots, 1), NPU_INT32, device);
  Tensor expert_tokens = allocate(expert_tokens_num_type == 2 ? Sizes(pairs, 2) : Sizes(&local, 1), NPU_INT64, device);
  Tensor expanded_scale = allocate(Sizes(scale_sizes.data(), scale_sizes.size()), format.scale_dtype, device);

  Tensor in = as_contiguous(x), experts = as_contiguous(expert_idx);
  OptionalTensor scales = as_contiguous(scale), offsets = as_contiguous(offset);
  int64_t range = expert_num - arguments.first + 2;  // keys of the sort
  const int64_t counted = counts_while_sorting(range) ? range : local;
  Tensor scratch = allocate_words(counted + local + ceil_div(slots + sort_scratch(slots, range), 2), device);
  auto* counts = static_cast<int64_t*>(scratch.data_ptr());
  int64_t* starts = counts + counted;
  auto* positions = reinterpret_cast<int32_t*>(starts + local);
  bool smooth = quant_mode == 0 || quant_mode == 1 || quant_mode == 13;
  InitRoutingV2Task task{};
  task.kernels = &kTables.active();
  task.rows.x = in.data_ptr();
  task.rows.experts = static_cast<const int32_t*>(experts.data_ptr());
  task.rows.smooth = smooth ? static_cast<const float*>(pointer_or_null(scales)) : nullptr;
  task.rows.smooth_rows = quant_mode != 0 && task.rows.smooth != nullptr ? scales->sizes()[0] : 0;
  task.rows.offset = static_cast<const float*>(pointer_or_null(offsets));
  task.rows.rows = expanded_x.data_ptr();
  task.rows.scales = expanded_scale.data_ptr();
  task.rows.columns = columns;
  task.rows.k = k;
  task.rows.row_bytes = format.columns * static_cast<int64_t>(expanded_x.element_size());
  task.rows.scale_bytes = static_cast<int64_t>(expanded_scale.element_size());
  for (int64_t size : format.scale_sizes) task.rows.scale_bytes *= size;
  task.rows.first_expert = arguments.first;
  task.rows.least = format.least;
  task.rows.format = format.format;
  task.rows.streamed = bytes_of(expanded_x) >= NPU_STREAM_BYTES;
  task.rows.dtype = dtype_of(x);
  task.rows.out = format.dtype;
  task.scale = quant_mode == -1 && tokens > 0 ? static_cast<const char*>(pointer_or_null(scales)) : nullptr;
  task.row_idx = static_cast<int32_t*>(expanded_row_idx.data_ptr());
  task.expert_tokens = static_cast<int64_t*>(expert_tokens.data_ptr());
  task.counts = counts;
  task.starts = starts;
  task.positions = row_idx_type == 1 ? positions : task.row_idx;
  task.sort_memory = positions + slots;
  task.tokens = tokens;
  task.slots = slots;
  task.allocated = allocated;
  task.first = arguments.first;
  task.last = arguments.last;
  task.experts = expert_num;
  task.capacity = expert_capacity;
  task.drop_pad = drop_pad;
  task.scatter = row_idx_type == 1;
  task.count_type = static_cast<int32_t>(expert_tokens_num_type);
  task.counted = expert_tokens_num_flag;
  launch(device, "npu::npu_moe_init_routing_v2", run_init_routing_v2, task,
         {reads(in), reads(experts), reads(scales), reads(offsets), writes(expanded_x), writes(expanded_row_idx),
          writes(expert_tokens), writes(expanded_scale), writes(scratch)});
  return {expanded_x, expanded_row_idx, expert_tokens, expanded_scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def(
      "npu_moe_init_routing(Tensor x, Tensor row_idx, Tensor expert_idx, int active_num) -> (Tensor, Tensor, Tensor)");
  m.def(
      "npu_moe_init_routing_v2(Tensor x, Tensor expert_idx, *, Tensor? scale=None, Tensor? offset=None, "
      "int active_num=-1, int expert_capacity=-1, int expert_num=-1, int drop_pad_mode=0, "
      "int expert_tokens_num_type=0, bool expert_tokens_num_flag=False, int quant_mode=-1, "
      "int[2] active_expert_range=[], int row_idx_type=0, int? x_dtype=None) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_moe_init_routing", TORCH_BOX(&init_routing));
  m.impl("npu_moe_init_routing_v2", TORCH_BOX(&init_routing_v2));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_moe_init_routing", TORCH_BOX(&init_routing));
  m.impl("npu_moe_init_routing_v2", TORCH_BOX(&init_routing_v2));
}

}  // namespace npu::ops_llm
