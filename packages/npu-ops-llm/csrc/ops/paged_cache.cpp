// npu_scatter_pa_kv_cache, its functional form and _npu_reshape_and_cache: schemas, checks and task.  Fake kernels:
// src/npu_ops_llm/paged_cache.py.
#include <algorithm>
#include <cstdio>
#include <tuple>

#include "npu/kernels/aliasing.h"
#include "npu/kernels/box.h"
#include "npu/kernels/indexed_writes.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/stable_tensor.h"
#include "npu/kernels/strings.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

enum class Layout {
  kNorm,  ///< (blocks, block size, heads, D)
  kNz,    ///< (blocks, heads * D / c, block size, c): element h of a token's heads * D is at [block, h / c, row, h % c]
};

/// Keys or values, one box per token.
struct Side {
  Box token;
  char* cache;
  const char* from;
  int64_t block_stride, row_stride, from_stride;  // bytes
  const void* cloned;                             ///< what the cache is a copy of, made first; NULL in place
  int64_t cloned_bytes;
};

struct CacheTask {
  Side sides[2];  ///< keys, values
  Indices slots;
  int64_t tokens, blocks, block_size;

  int64_t slot(int64_t t) const {
    int64_t index = slots[t];
    return index < 0 ? int64_t{kSkipped} : index < blocks * block_size ? index : int64_t{kOutOfRange};
  }
};

/// The NZ layout: a token is a short run in each of many places, where the runs of the next slot follow.  Tokens of
/// neighbouring slots are written together, place by place, so that whole cache lines are written, and by one thread.
/// Slots fall into groups, each written by the thread of its share in the order of the tokens.
npu_status write_blocked(const CacheTask& task, const Side& side, npu_error* error) {
  constexpr int64_t kGroup = 16, kStaged = 1024;
  const Box& token = side.token;
  const int64_t run = token.run, groups = (task.block_size + kGroup - 1) / kGroup;
  const int64_t total = task.tokens * token.bytes();
  const bool streams = total >= NPU_STREAM_BYTES && kGroup * run <= kStaged;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t t = 0, count = 1; t < task.tokens; t += count) {
      count = 1;
      int64_t index = task.slot(t);
      if (index < 0) continue;
      int64_t block = index / task.block_size, row = index % task.block_size;
      int64_t most = std::min({kGroup - row % kGroup, task.block_size - row, task.tokens - t});
      while (count < most && task.slot(t + count) == index + count) ++count;
      int64_t share = share_of(block * groups + row / kGroup);
      if (share < begin || share >= end) continue;
      auto write = [&](char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t parts) {
        for (int64_t p = 0; p < parts; ++p, to += to_stride, from += from_stride) {
          if (streams && count * run >= NPU_STREAM_ROW) {
            alignas(64) char staged[kStaged];
            copy_runs(staged, run, from, side.from_stride, count, run);
            npu_stream_copy(to, staged, count * run);
          } else {
            copy_runs(to, run, from, side.from_stride, count, run);
          }
        }
      };
      walk_box(token, token.dims - 1, side.cache + block * side.block_stride + row * side.row_stride,
               side.from + t * side.from_stride, 0, token.units(), write);
    }
    npu_stream_fence();
  };
  return parallel_for(kShares, grain_of_shares(total), body, error);
}

npu_status run_cache(void* payload, npu_error* error) {
  const auto& task = *static_cast<const CacheTask*>(payload);
  auto slot = [&](int64_t t) { return task.slot(t); };
  Survey found;
  npu_status status = survey_writers(task.tokens, slot, found, error);
  if (status != NPU_OK) return status;
  if (found.first_bad < task.tokens) {
    std::snprintf(error->message, sizeof(error->message),
                  "slot %lld of token %lld is out of range: expected slot < %lld, %lld blocks of %lld tokens, or a "
                  "negative slot for a token to skip",
                  (long long)task.slots[found.first_bad], (long long)found.first_bad,
                  (long long)(task.blocks * task.block_size), (long long)task.blocks, (long long)task.block_size);
    return NPU_ERROR_INDEX;
  }
  for (const Side& side : task.sides) {
    if (side.cloned == nullptr) continue;
    status = copy_bytes(side.cache, side.cloned, side.cloned_bytes, error);
    if (status != NPU_OK) return status;
  }
  for (const Side& side : task.sides) {
    if (side.token.bytes() == 0) continue;
    if (side.token.dims > 0 && side.row_stride == side.token.run) {
      status = write_blocked(task, side, error);
      if (status != NPU_OK) return status;
      continue;
    }
    auto locate = [&](int64_t t) {
      int64_t index = slot(t);
      if (index < 0) return index;
      return index / task.block_size * side.block_stride + index % task.block_size * side.row_stride;
    };
    auto write = [&](int64_t t, int64_t place, int64_t begin, int64_t end) {
      copy_box(side.token, side.cache + place, side.from + t * side.from_stride, begin, end);
    };
    const char* base = side.token.streams ? nullptr : side.cache;
    status =
        write_in_order(task.tokens, found.rising, side.token.units(), side.token.bytes(), base, locate, write, error);
    if (status != NPU_OK) return status;
  }
  return NPU_OK;
}

/// What a call is about, with the names of its arguments.
struct Call {
  const char* op;
  const char* task;
  const char* slots;
  bool in_place;
};

bool is_norm(const Tensor& tokens, const Tensor& cache) {
  return cache.dim() == 4 && cache.size(2) == tokens.size(1) && cache.size(3) == tokens.size(2);
}

void check_side(const Call& call, const char* name, const char* cache_name, const Device& device, const Tensor& tokens,
                const Tensor& cache, Layout layout) {
  check_same_device(call.op, device, name, tokens);
  check_same_device(call.op, device, cache_name, cache);
  NPU_CHECK_ARG(dtype_of(cache) == dtype_of(tokens), call.op, cache_name, "expected dtype ",
                npu_dtype_name(dtype_of(tokens)), " (as ", name, "), got ", npu_dtype_name(dtype_of(cache)));
  if (layout == Layout::kNorm) {
    NPU_CHECK_ARG(is_norm(tokens, cache), call.op, cache_name, "expected shape (blocks, block size, ", tokens.size(1),
                  ", ", tokens.size(2), "), the last two as in ", name, ", got ", shape_text(cache.sizes()));
  } else {
    int64_t elements = tokens.size(1) * tokens.size(2);
    NPU_CHECK_ARG(cache.dim() == 4 && cache.size(1) * cache.size(3) == elements, call.op, cache_name,
                  "expected shape (blocks, heads * head size / c, block size, c) with ", elements,
                  " elements of a token on dims 1 and 3, because ", name, " has shape ", shape_text(tokens.sizes()),
                  ", got ", shape_text(cache.sizes()));
  }
  if (call.in_place) check_writable(call.op, cache_name, cache);
}

/// Fills in `side`; returns what the cache is written to.  `tokens` becomes a copy where it must.
Tensor lay_out(const Call& call, Side& side, Tensor& tokens, const Tensor& cache, Layout layout) {
  int64_t size = static_cast<int64_t>(cache.element_size());
  Tensor target = cache;
  if (call.in_place) {
    tokens = apart_from(tokens, cache);
  } else if (cache.is_contiguous()) {
    target = allocate(cache.sizes(), dtype_of(cache), device_of(cache));
    side.cloned = cache.data_ptr();
    side.cloned_bytes = bytes_of(cache);
  } else {
    target = torch::stable::contiguous(cache);
  }
  int64_t heads = tokens.size(1), width = tokens.size(2);
  auto to = target.strides();
  if (layout == Layout::kNorm) {
    side.token = box_of_run(size);
    add_dim(side.token, width, to[3] * size, tokens.stride(2) * size);
    add_dim(side.token, heads, to[2] * size, tokens.stride(1) * size);
    side.row_stride = to[1] * size;
  } else {
    int64_t c = target.size(3);
    if (c > 0 && width % c != 0) {  // parts of c elements cross heads
      tokens = as_contiguous(tokens);
      width *= heads;
      heads = 1;
    }
    side.token = box_of_run(size);
    int64_t parts = c > 0 ? width / c : 0, step = tokens.stride(2);
    add_dim(side.token, c, to[3] * size, step * size);
    add_dim(side.token, parts, to[1] * size, step * c * size);
    add_dim(side.token, heads, to[1] * parts * size, tokens.stride(1) * size);
    side.row_stride = to[2] * size;
  }
  stream_if_large(side.token, tokens.size(0) * side.token.bytes());
  side.block_stride = to[0] * size;
  side.from_stride = tokens.stride(0) * size;
  side.cache = static_cast<char*>(target.data_ptr());
  side.from = static_cast<const char*>(tokens.data_ptr());
  return target;
}

std::tuple<Tensor, Tensor> write_caches(const Call& call, const Tensor& key, const Tensor& value,
                                        const Tensor& key_cache, const Tensor& value_cache, const Tensor& slots,
                                        Layout layout) {
  Device device = device_of(key);
  NPU_CHECK_ARG(key.dim() == 3, call.op, "key", "expected shape (tokens, heads, head size), got ",
                shape_text(key.sizes()));
  NPU_CHECK_ARG(value.dim() == 3 && value.size(0) == key.size(0), call.op, "value", "expected shape (", key.size(0),
                ", heads, head size), one row per token of key, got ", shape_text(value.sizes()));
  check_side(call, "key", "key_cache", device, key, key_cache, layout);
  check_side(call, "value", "value_cache", device, value, value_cache, layout);
  check_same_device(call.op, device, call.slots, slots);
  check_dtype(call.op, call.slots, slots, {NPU_INT32, NPU_INT64});
  NPU_CHECK_ARG(slots.dim() == 1 && slots.size(0) == key.size(0), call.op, call.slots, "expected shape [", key.size(0),
                "], one slot per token of key, got ", shape_text(slots.sizes()));
  int64_t row_dim = layout == Layout::kNorm ? 1 : 2;
  NPU_CHECK_ARG(value_cache.size(0) == key_cache.size(0) && value_cache.size(row_dim) == key_cache.size(row_dim),
                call.op, "value_cache", "expected ", key_cache.size(0), " blocks of ", key_cache.size(row_dim),
                " tokens, as key_cache of shape ", shape_text(key_cache.sizes()), ", got shape ",
                shape_text(value_cache.sizes()));

  CacheTask task{};
  task.tokens = key.size(0);
  task.blocks = key_cache.size(0);
  task.block_size = key_cache.size(row_dim);
  Tensor index = as_contiguous(slots), keys = key, values = value;
  if (call.in_place) {
    index = apart_from(apart_from(index, key_cache), value_cache);
    keys = apart_from(keys, value_cache);
    values = apart_from(values, key_cache);
  }
  Tensor keys_out = lay_out(call, task.sides[0], keys, key_cache, layout);
  Tensor values_out = lay_out(call, task.sides[1], values, value_cache, layout);
  task.slots = {index.data_ptr(), dtype_of(index) == NPU_INT64};
  if (task.tokens > 0 || task.sides[0].cloned_bytes + task.sides[1].cloned_bytes > 0) {
    launch(device, call.task, run_cache, task,
           {reads_span(keys), reads_span(values), reads(index), reads_span(key_cache), reads_span(value_cache),
            writes_span(keys_out), writes_span(values_out)});
  }
  return {keys_out, values_out};
}

/// Layout that the arguments of npu_scatter_pa_kv_cache name.
Layout layout_of(const char* op, const Tensor& key, const OptionalTensor& compress_lens,
                 const OptionalTensor& compress_seq_offsets, const OptionalTensor& seq_lens,
                 const std::optional<String>& cache_mode) {
  NPU_CHECK_ARG(
      key.dim() == 3 && !compress_lens.has_value() && !compress_seq_offsets.has_value() && !seq_lens.has_value(), op,
      key.dim() == 4 ? "key" : "compress_lens", "compressed heads (key of 4 dims with compress_lens and ",
      "seq_lens) are not supported on this device; expected key of shape (tokens, heads, head size), got ",
      shape_text(key.sizes()), ", and None for compress_lens, compress_seq_offsets and seq_lens");
  if (!cache_mode.has_value() || *cache_mode == "Norm") return Layout::kNorm;
  NPU_CHECK_ARG(*cache_mode == "PA_NZ", op, "cache_mode", "expected 'PA_NZ', 'Norm' or None, got '", cache_mode->value,
                "'");
  return Layout::kNz;
}

void scatter_pa_kv_cache(const Tensor& key, const Tensor& value, const Tensor& key_cache, const Tensor& value_cache,
                         const Tensor& slot_mapping, OptionalTensor compress_lens, OptionalTensor compress_seq_offsets,
                         OptionalTensor seq_lens, std::optional<String> cache_mode) {
  Call call{"npu_scatter_pa_kv_cache", "npu::npu_scatter_pa_kv_cache", "slot_mapping", true};
  Layout layout = layout_of(call.op, key, compress_lens, compress_seq_offsets, seq_lens, cache_mode);
  write_caches(call, key, value, key_cache, value_cache, slot_mapping, layout);
}

std::tuple<Tensor, Tensor> scatter_pa_kv_cache_functional(const Tensor& key, const Tensor& value,
                                                          const Tensor& key_cache, const Tensor& value_cache,
                                                          const Tensor& slot_mapping, OptionalTensor compress_lens,
                                                          OptionalTensor compress_seq_offsets, OptionalTensor seq_lens,
                                                          std::optional<String> cache_mode) {
  Call call{"npu_scatter_pa_kv_cache_functional", "npu::npu_scatter_pa_kv_cache_functional", "slot_mapping", false};
  Layout layout = layout_of(call.op, key, compress_lens, compress_seq_offsets, seq_lens, cache_mode);
  return write_caches(call, key, value, key_cache, value_cache, slot_mapping, layout);
}

/// Sizes tell the layouts apart.  They cannot where heads of c elements meet blocks of as many tokens as heads; such
/// caches are taken as plain ones.
void reshape_and_cache(const Tensor& key, const Tensor& value, const Tensor& key_cache, const Tensor& value_cache,
                       const Tensor& slot_indices) {
  Call call{"_npu_reshape_and_cache", "atb::_npu_reshape_and_cache", "slot_indices", true};
  auto fits = [](const Tensor& tokens, const Tensor& cache) { return tokens.dim() != 3 || is_norm(tokens, cache); };
  auto fits_nz = [](const Tensor& tokens, const Tensor& cache) {
    return tokens.dim() == 3 && cache.dim() == 4 && cache.size(1) * cache.size(3) == tokens.size(1) * tokens.size(2);
  };
  bool norm = fits(key, key_cache) && fits(value, value_cache);
  bool nz = !norm && fits_nz(key, key_cache) && fits_nz(value, value_cache);
  write_caches(call, key, value, key_cache, value_cache, slot_indices, nz ? Layout::kNz : Layout::kNorm);
}

/// The same operator in the namespace of the others.
void reshape_and_cache_of_npu(const Tensor& key, const Tensor& value, const Tensor& key_cache,
                              const Tensor& value_cache, const Tensor& slot_indices) {
  call_indexed("atb::_npu_reshape_and_cache", key, value, key_cache, value_cache, slot_indices);
}

}  // namespace

#define NPU_CACHE_OPTIONS                                                                                          \
  "Tensor slot_mapping, *, Tensor? compress_lens=None, Tensor? compress_seq_offsets=None, Tensor? seq_lens=None, " \
  "str? cache_mode='PA_NZ')"

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def(
      "npu_scatter_pa_kv_cache(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) "
      "value_cache, " NPU_CACHE_OPTIONS " -> ()");
  m.def(
      "npu_scatter_pa_kv_cache_functional(Tensor key, Tensor value, Tensor key_cache, Tensor "
      "value_cache, " NPU_CACHE_OPTIONS " -> (Tensor, Tensor)");
}

#define NPU_RESHAPE_AND_CACHE_SCHEMA                                                                \
  "_npu_reshape_and_cache(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, " \
  "Tensor slot_indices) -> ()"

STABLE_TORCH_LIBRARY_FRAGMENT(atb, m) { m.def(NPU_RESHAPE_AND_CACHE_SCHEMA); }

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) { m.def(NPU_RESHAPE_AND_CACHE_SCHEMA); }

STABLE_TORCH_LIBRARY_IMPL(npu, CompositeImplicitAutograd, m) {
  m.impl("_npu_reshape_and_cache", TORCH_BOX(&reshape_and_cache_of_npu));
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_scatter_pa_kv_cache", TORCH_BOX(&scatter_pa_kv_cache));
  m.impl("npu_scatter_pa_kv_cache_functional", TORCH_BOX(&scatter_pa_kv_cache_functional));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_scatter_pa_kv_cache", TORCH_BOX(&scatter_pa_kv_cache));
  m.impl("npu_scatter_pa_kv_cache_functional", TORCH_BOX(&scatter_pa_kv_cache_functional));
}

STABLE_TORCH_LIBRARY_IMPL(atb, PrivateUse1, m) { m.impl("_npu_reshape_and_cache", TORCH_BOX(&reshape_and_cache)); }

STABLE_TORCH_LIBRARY_IMPL(atb, CPU, m) { m.impl("_npu_reshape_and_cache", TORCH_BOX(&reshape_and_cache)); }

}  // namespace npu::ops_llm
