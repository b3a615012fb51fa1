// npu_moe_re_routing: schema, checks and task.  Fake kernel: src/npu_ops_llm/moe_routing.py.
#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "../kernels/moe_routing.h"
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

constexpr const char* kOp = "npu_moe_re_routing";

/// Blocks of rows, one for every (expert, rank) in that order.
struct ReRoutingTask {
  const MoeRoutingKernels* kernels;
  const char *tokens, *scales;  // scales may be NULL
  const void* numbers;          // number_dtype: ranks x experts
  char *out, *out_scales;
  int32_t* index;
  void* expert_tokens;     // number_dtype: experts
  int64_t *source, *into;  // ranks x experts; one more of `into`
  int64_t rows, row_bytes, scale_bytes, ranks, experts;
  int32_t cumulative, scatter, streamed;
  npu_dtype number_dtype;
};

template <class Number>
npu_status run_blocks(const ReRoutingTask& task, npu_error* error) {
  const auto* numbers = static_cast<const Number*>(task.numbers);
  const int64_t ranks = task.ranks, experts = task.experts, blocks = ranks * experts;
  int64_t sum = 0;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t number = numbers[i], left = task.rows - sum;
    if (number < 0 || number > left) {
      std::snprintf(error->message, sizeof(error->message),
                    "argument expert_token_num_per_rank: expected counts from 0 on that add up to at most %lld (rows "
                    "of tokens), got %lld for rank %lld, expert %lld after %lld rows",
                    static_cast<long long>(task.rows), static_cast<long long>(number),
                    static_cast<long long>(i / experts), static_cast<long long>(i % experts),
                    static_cast<long long>(sum));
      return NPU_ERROR_TASK_FAILED;
    }
    task.source[i % experts * ranks + i / experts] = sum;
    sum += number;
  }
  int64_t position = 0;
  auto* expert_tokens = static_cast<Number*>(task.expert_tokens);
  for (int64_t expert = 0; expert < experts; ++expert) {
    const int64_t first = position;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      task.into[expert * ranks + rank] = position;
      position += numbers[rank * experts + expert];
    }
    expert_tokens[expert] = static_cast<Number>(task.cumulative ? position : position - first);
  }
  task.into[blocks] = sum;

  auto rows = [&](int64_t begin, int64_t end) {
    // The last block that starts at or before `begin` is the one that holds it.
    int64_t block = std::upper_bound(task.into, task.into + blocks, begin) - task.into - 1;
    for (int64_t row = begin; row < end && row < sum; ++block) {
      const int64_t stop = std::min(end, task.into[block + 1]), count = stop - row;
      if (count <= 0) continue;
      const int64_t source = task.source[block] + row - task.into[block];
      task.kernels->copy(task.out + row * task.row_bytes, task.tokens + source * task.row_bytes, count * task.row_bytes,
                         task.streamed);
      if (task.scales != nullptr) {
        std::memcpy(task.out_scales + row * task.scale_bytes, task.scales + source * task.scale_bytes,
                    static_cast<size_t>(count * task.scale_bytes));
      }
      for (int64_t i = 0; i < count; ++i) {
        task.index[task.scatter ? source + i : row + i] = static_cast<int32_t>(task.scatter ? row + i : source + i);
      }
      row = stop;
    }
    const int64_t rest = std::max(begin, sum);
    if (rest < end) {
      const auto count = static_cast<size_t>(end - rest);
      std::memset(task.out + rest * task.row_bytes, 0, count * static_cast<size_t>(task.row_bytes));
      std::memset(task.index + rest, 0xff, count * sizeof(int32_t));
      if (task.scales != nullptr) {
        std::memset(task.out_scales + rest * task.scale_bytes, 0, count * static_cast<size_t>(task.scale_bytes));
      }
    }
    if (task.scales == nullptr) {
      std::memset(task.out_scales + begin * task.scale_bytes, 0, static_cast<size_t>((end - begin) * task.scale_bytes));
    }
    if (task.streamed) npu_stream_fence();
  };
  return parallel_for(task.rows, grain_for(task.row_bytes / 4 + 8), rows, error);
}

npu_status run_re_routing(void* payload, npu_error* error) {
  const auto& task = *static_cast<const ReRoutingTask*>(payload);
  return task.number_dtype == NPU_INT64 ? run_blocks<int64_t>(task, error) : run_blocks<int32_t>(task, error);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> re_routing(const Tensor& tokens, const Tensor& expert_token_num_per_rank,
                                                      const OptionalTensor& per_token_scales,
                                                      int64_t expert_token_num_type, int64_t idx_type,
                                                      std::optional<int64_t> tokens_dtype) {
  const Tensor& numbers = expert_token_num_per_rank;
  Device device = device_of(tokens);
  check_same_device(kOp, device, "expert_token_num_per_rank", numbers);
  check_same_device(kOp, device, "per_token_scales", per_token_scales);
  NPU_CHECK_ARG(tokens.dim() > 1, kOp, "tokens", "expected 2 dims or more, got shape ", shape_text(tokens.sizes()));
  NPU_CHECK_ARG(numbers.dim() == 2, kOp, "expert_token_num_per_rank", "expected 2 dims, (ranks, experts), got shape ",
                shape_text(numbers.sizes()));
  check_dtype(kOp, "expert_token_num_per_rank", numbers, {NPU_INT32, NPU_INT64});
  NPU_CHECK_ARG(expert_token_num_type == 0 || expert_token_num_type == 1, kOp, "expert_token_num_type",
                "expected 0 (cumulative sums) or 1 (counts), got ", expert_token_num_type);
  NPU_CHECK_ARG(idx_type == 0 || idx_type == 1, kOp, "idx_type", "expected 0 (gather) or 1 (scatter), got ", idx_type);
  NPU_CHECK_ARG(!tokens_dtype.has_value() || *tokens_dtype == 290 || *tokens_dtype == 296 || *tokens_dtype == 297, kOp,
                "tokens_dtype", "expected None, hifloat8, float4_e2m1fn_x2 or float4_e1m2fn_x2, got ",
                dtype_argument_name(*tokens_dtype));
  int64_t rows = tokens.sizes()[0];
  NPU_CHECK_ARG(rows <= INT32_MAX, kOp, "tokens", "expected at most 2147483647 rows, got ", rows);
  if (per_token_scales.has_value() && rows > 0) {
    NPU_CHECK_ARG(per_token_scales->dim() >= 1 && per_token_scales->sizes()[0] == rows, kOp, "per_token_scales",
                  "expected one row for each of the ", rows, " tokens, got shape ",
                  shape_text(per_token_scales->sizes()));
  }
  Tensor in = as_contiguous(tokens), counts = as_contiguous(numbers);
  OptionalTensor scales = as_contiguous(per_token_scales);
  int64_t ranks = numbers.sizes()[0], experts = numbers.sizes()[1];
  Tensor out = allocate(tokens.sizes(), dtype_of(tokens), device);
  std::vector<int64_t> scale_sizes = {rows};  // without tokens a given tensor may have any shape
  if (scales.has_value() && scales->dim() > 1) {
    scale_sizes.insert(scale_sizes.end(), scales->sizes().begin() + 1, scales->sizes().end());
  }
  Tensor out_scales = allocate(Sizes(scale_sizes.data(), scale_sizes.size()),
                               scales.has_value() ? dtype_of(*scales) : NPU_FLOAT32, device);
  Tensor index = allocate(Sizes(&rows, 1), NPU_INT32, device);
  Tensor expert_tokens = allocate(Sizes(&experts, 1), dtype_of(numbers), device);
  int64_t words = 2 * ranks * experts + 1;
  Tensor scratch = allocate(Sizes(&words, 1), NPU_INT64, device);
  ReRoutingTask task{};
  task.kernels = &kTables.active();
  task.tokens = static_cast<const char*>(in.data_ptr());
  task.scales = static_cast<const char*>(pointer_or_null(scales));
  task.numbers = counts.data_ptr();
  task.out = static_cast<char*>(out.data_ptr());
  task.out_scales = static_cast<char*>(out_scales.data_ptr());
  task.index = static_cast<int32_t*>(index.data_ptr());
  task.expert_tokens = expert_tokens.data_ptr();
  task.source = static_cast<int64_t*>(scratch.data_ptr());
  task.into = task.source + ranks * experts;
  task.rows = rows;
  task.row_bytes = rows > 0 ? bytes_of(out) / rows : 0;
  task.scale_bytes = rows > 0 ? bytes_of(out_scales) / rows : 0;
  task.ranks = ranks;
  task.experts = experts;
  task.cumulative = expert_token_num_type == 0;
  task.scatter = idx_type == 1;
  task.streamed = bytes_of(out) >= NPU_STREAM_BYTES;
  task.number_dtype = dtype_of(numbers);
  launch(device, "npu::npu_moe_re_routing", run_re_routing, task,
         {reads(in), reads(counts), reads(scales), writes(out), writes(out_scales), writes(index),
          writes(expert_tokens), writes(scratch)});
  return {out, out_scales, index, expert_tokens};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def(
      "npu_moe_re_routing(Tensor tokens, Tensor expert_token_num_per_rank, *, Tensor? per_token_scales=None, "
      "int expert_token_num_type=1, int idx_type=0, int? tokens_dtype=None) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) { m.impl("npu_moe_re_routing", TORCH_BOX(&re_routing)); }
STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) { m.impl("npu_moe_re_routing", TORCH_BOX(&re_routing)); }

}  // namespace npu::ops_llm
