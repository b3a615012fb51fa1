// npu_kv_rmsnorm_rope_cache: schema, checks and task.  Fake: src/npu_ops_llm/kv_rmsnorm_rope_cache.py.
#include "../kernels/kv_rmsnorm_rope_cache.h"

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <tuple>

#include "npu/kernels/aliasing.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/strided_tensor.h"
#include "npu/kernels/strings.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

constexpr const char* kOp = "npu_kv_rmsnorm_rope_cache";
constexpr const char* kIndexError = "argument index: element ";

const KernelTables<KvRmsnormRopeCacheKernels> kTables = {{
    &kv_rmsnorm_rope_cache_kernels_base,
#if defined(__x86_64__)
    &kv_rmsnorm_rope_cache_kernels_avx2,
    &kv_rmsnorm_rope_cache_kernels_avx512,
    &kv_rmsnorm_rope_cache_kernels_avx512_bf16,
#endif
}};

// ---- task -----------------------------------------------------------------------------------------------------------

struct CacheTask {
  const KvRmsnormRopeCacheKernels* kernels;
  KvRmsnormRopeCache work;
  int64_t indices, limit;  // how many, and the first that is too large
};

npu_status run_cache(void* payload, npu_error* error) {
  const auto& task = *static_cast<const CacheTask*>(payload);
  const KvRmsnormRopeCache& work = task.work;
  // Before anything is written.
  for (int64_t i = 0; i < task.indices; ++i) {
    if (work.index[i] < task.limit) continue;
    std::snprintf(error->message, sizeof(error->message), "%s%lld is %lld, expected less than %lld (the %s of k_cache)",
                  kIndexError, static_cast<long long>(i), static_cast<long long>(work.index[i]),
                  static_cast<long long>(task.limit), work.index_mode == CACHE_ROW ? "rows per batch" : "slots");
    return NPU_ERROR_INDEX;
  }
  auto tokens = [&](int64_t begin, int64_t end) { task.kernels->tokens(&work, begin, end); };
  return parallel_for(work.batches * work.length, grain_for(work.k_cache.columns + work.ckv_cache.columns), tokens,
                      error);
}

// ---- cache modes ----------------------------------------------------------------------------------------------------

struct CacheMode {
  const char* name;
  CacheIndex index;
  bool fractal;  // blocks lie as (columns / chunk, rows, chunk)
};

/// The internal operator gets the number of its mode: strings end at the public one.
constexpr CacheMode kModes[] = {{"Norm", CACHE_ROW, false},         {"PA", CACHE_SLOT, false},
                                {"PA_BNSD", CACHE_SLOT, false},     {"PA_NZ", CACHE_SLOT, true},
                                {"PA_BLK_BNSD", CACHE_PAGE, false}, {"PA_BLK_NZ", CACHE_PAGE, true}};

int64_t cache_mode_number(const String& name) {
  int64_t number = 0;
  std::string names;
  for (const CacheMode& mode : kModes) {
    if (name == mode.name) return number;
    names += (number++ ? ", " : "") + std::string(mode.name);
  }
  NPU_CHECK_ARG(false, kOp, "cache_mode", "expected one of ", names, ", got ", name.value);
  return -1;
}

/// Checks dtype, scale and offset of a cache; `writable` is the cache or, where it cannot be written in place, a copy.
CacheLayout layout_of(const char* name, const Tensor& writable, const CacheMode& mode, const char* scale_name,
                      const OptionalTensor& scale, const char* offset_name, const OptionalTensor& offset) {
  npu_dtype dtype = dtype_of(writable);
  int64_t columns = writable.size(3);
  if (scale.has_value()) {
    NPU_CHECK_ARG(dtype == NPU_INT8, kOp, name, "expected dtype int8 with ", scale_name, ", got ",
                  npu_dtype_name(dtype));
    check_dtype(kOp, scale_name, *scale, {NPU_FLOAT32});
    check_sizes(kOp, scale_name, *scale, Sizes(&columns, 1), "(one per column)");
  } else {
    NPU_CHECK_ARG(dtype == NPU_BFLOAT16 || dtype == NPU_FLOAT16 || dtype == NPU_FLOAT32, kOp, name,
                  "expected dtype float16, bfloat16 or float32, or int8 with ", scale_name, ", got ",
                  npu_dtype_name(dtype));
  }
  if (offset.has_value()) {
    NPU_CHECK_ARG(scale.has_value(), kOp, offset_name, "expected ", scale_name, " with it, got None");
    check_dtype(kOp, offset_name, *offset, {NPU_FLOAT32});
    check_sizes(kOp, offset_name, *offset, Sizes(&columns, 1), "(one per column)");
  }
  constexpr int32_t kWholeRow = 62;
  CacheLayout layout{writable.data_ptr(),
                     static_cast<const float*>(pointer_or_null(scale)),
                     static_cast<const float*>(pointer_or_null(offset)),
                     columns,
                     writable.strides()[0],
                     writable.strides()[mode.index == CACHE_ROW ? 2 : 1],
                     0,
                     dtype,
                     static_cast<int32_t>(npu_dtype_size(dtype)),
                     kWholeRow};
  if (mode.fractal) {
    layout.chunk_shift = scale.has_value() ? 5 : 4;
    layout.row_stride = int64_t{1} << layout.chunk_shift;
    layout.chunk_stride = layout.row_stride * writable.size(1);
    NPU_CHECK_ARG(columns % layout.row_stride == 0, kOp, name, "expected a last dim that is a multiple of ",
                  layout.row_stride, " for cache_mode ", mode.name, ", got ", columns);
  }
  return layout;
}

// ---- operator -------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> write_cache(const Tensor& kv, const Tensor& gamma, const Tensor& cos, const Tensor& sin,
                                       const Tensor& index, const Tensor& k_cache, const Tensor& ckv_cache,
                                       OptionalTensor k_rope_scale, OptionalTensor c_kv_scale,
                                       OptionalTensor k_rope_offset, OptionalTensor c_kv_offset, OptionalTensor v,
                                       double epsilon, int64_t cache_mode, bool is_output_kv) {
  const CacheMode& mode = kModes[cache_mode];
  Device device = device_of(kv);
  npu_dtype dtype = dtype_of(kv);
  check_dtype(kOp, "kv", kv, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  for (auto [name, tensor] : {std::pair{"gamma", &gamma}, {"cos", &cos}, {"sin", &sin}}) {
    check_same_device(kOp, device, name, *tensor);
    check_dtype(kOp, name, *tensor, {dtype});
  }
  check_same_device(kOp, device, "index", index);
  check_same_device(kOp, device, "k_cache", k_cache);
  check_same_device(kOp, device, "ckv_cache", ckv_cache);
  for (auto [name, tensor] : {std::pair{"k_rope_scale", &k_rope_scale},
                              {"c_kv_scale", &c_kv_scale},
                              {"k_rope_offset", &k_rope_offset},
                              {"c_kv_offset", &c_kv_offset},
                              {"v", &v}}) {
    check_same_device(kOp, device, name, *tensor);
  }
  check_dtype(kOp, "index", index, {NPU_INT64});

  NPU_CHECK_ARG(kv.dim() == 4 && kv.size(1) == 1, kOp, "kv", "expected 4 dims (B, 1, S, D), got shape ",
                shape_text(kv.sizes()));
  NPU_CHECK_ARG(gamma.dim() == 1, kOp, "gamma", "expected 1 dim, got shape ", shape_text(gamma.sizes()));
  int64_t batches = kv.size(0), length = kv.size(2), columns = kv.size(3), norm = gamma.numel();
  NPU_CHECK_ARG(cos.dim() == 4 && (cos.size(0) == batches || cos.size(0) == 1) && cos.size(1) == 1 &&
                    (cos.size(2) == length || cos.size(2) == 1) && cos.size(3) % 2 == 0,
                kOp, "cos", "expected 4 dims (B, 1, S, Dr) with an even Dr; kv has shape ", shape_text(kv.sizes()),
                ", cos has shape ", shape_text(cos.sizes()));
  check_sizes(kOp, "sin", sin, cos.sizes(), "(as cos)");
  int64_t rope = cos.size(3), k_columns = rope, ckv_columns = norm;
  if (v.has_value()) {
    check_dtype(kOp, "v", *v, {dtype});
    NPU_CHECK_ARG(v->dim() == 4 && v->size(0) == batches && v->size(1) == 1 && v->size(2) == length, kOp, "v",
                  "expected shape (B, 1, S, Dv); kv has shape ", shape_text(kv.sizes()), ", v has shape ",
                  shape_text(v->sizes()));
    NPU_CHECK_ARG(norm == columns && rope <= columns, kOp, "gamma",
                  "expected as many elements as kv has columns with v, and cos at most as many; kv has ", columns,
                  ", gamma ", norm, ", cos ", rope);
    k_columns = columns;
    ckv_columns = v->size(3);
  } else {
    NPU_CHECK_ARG(norm + rope == columns, kOp, "kv",
                  "expected as many columns as gamma has elements and cos has columns together (", norm, " + ", rope,
                  "), got ", columns);
  }

  bool paged = mode.index != CACHE_ROW;
  NPU_CHECK_ARG(k_cache.dim() == 4 && k_cache.size(paged ? 2 : 1) == 1 && k_cache.size(3) == k_columns &&
                    (paged || k_cache.size(0) == batches),
                kOp, "k_cache", "expected shape ", paged ? "(blocks, block_size, 1, " : "(B, 1, rows, ", k_columns,
                ") for cache_mode ", mode.name, ", got ", shape_text(k_cache.sizes()));
  int64_t ckv_sizes[] = {k_cache.size(0), k_cache.size(1), k_cache.size(2), ckv_columns};
  check_sizes(kOp, "ckv_cache", ckv_cache, Sizes(ckv_sizes, 4), "(as k_cache but for the last dim)");
  int64_t blocks = k_cache.size(0), block_size = k_cache.size(paged ? 1 : 2);
  NPU_CHECK_ARG(!paged || block_size > 0, kOp, "k_cache", "expected a block_size of at least 1, got shape ",
                shape_text(k_cache.sizes()));
  if (mode.index == CACHE_ROW) {
    int64_t sizes[] = {batches, length};
    check_sizes(kOp, "index", index, Sizes(sizes, 2), "(B, S)");
  } else if (mode.index == CACHE_SLOT) {
    int64_t count = batches * length;
    check_sizes(kOp, "index", index, Sizes(&count, 1), "(B * S,)");
  } else {
    int64_t count = batches * ((length + block_size - 1) / block_size);
    check_sizes(kOp, "index", index, Sizes(&count, 1), "(B * ceil(S / block_size),)");
  }
  check_writable(kOp, "k_cache", k_cache);
  check_writable(kOp, "ckv_cache", ckv_cache);

  // Caches are written where they are.  Only a row (with fractals: a block) whose elements are not neighbours needs a
  // copy that is copied back.
  int64_t unit = mode.fractal ? 3 : 1;
  auto in_place = [&](const Tensor& cache) { return rows_are_contiguous(cache, unit) ? cache : as_contiguous(cache); };
  Tensor k_target = in_place(k_cache), ckv_target = in_place(ckv_cache);
  OptionalTensor k_scale = as_contiguous(k_rope_scale), k_offset = as_contiguous(k_rope_offset);
  OptionalTensor ckv_scale = as_contiguous(c_kv_scale), ckv_offset = as_contiguous(c_kv_offset);
  CacheLayout k = layout_of("k_cache", k_target, mode, "k_rope_scale", k_scale, "k_rope_offset", k_offset);
  CacheLayout ckv = layout_of("ckv_cache", ckv_target, mode, "c_kv_scale", ckv_scale, "c_kv_offset", ckv_offset);

  int64_t k_sizes[] = {batches, 1, length, k_columns}, y_sizes[] = {batches, 1, length, ckv_columns};
  Tensor k_out = allocate(Sizes(k_sizes, 4), dtype, device), ckv_out = allocate(Sizes(y_sizes, 4), dtype, device);
  if (batches * length == 0) return {k_out, ckv_out};

  Tensor x = with_contiguous_rows(kv), c = with_contiguous_rows(cos), s = with_contiguous_rows(sin);
  Tensor weight = as_contiguous(gamma), slots = as_contiguous(index);
  OptionalTensor values = v.has_value() ? OptionalTensor(with_contiguous_rows(*v)) : std::nullopt;
  Sizes leading(k_sizes, 3);
  CacheTask task{&kTables.active(),
                 {rows_of(x, leading, 1),
                  rows_of(c, leading, 1),
                  rows_of(s, leading, 1),
                  values.has_value() ? rows_of(*values, leading, 1) : npu_strided{},
                  weight.data_ptr(),
                  static_cast<const int64_t*>(slots.data_ptr()),
                  k,
                  ckv,
                  k_out.data_ptr(),
                  ckv_out.data_ptr(),
                  batches,
                  length,
                  norm,
                  rope,
                  blocks,
                  block_size,
                  static_cast<float>(epsilon),
                  mode.index,
                  v.has_value(),
                  is_output_kv && paged,
                  dtype},
                 slots.numel(),
                 paged ? blocks * block_size : block_size};
  npu_access reads_v = values.has_value() ? reads_span(*values) : npu_access{nullptr, 0, 0, 0};
  launch(device, "npu::npu_kv_rmsnorm_rope_cache", run_cache, task,
         {reads_span(x), reads(weight), reads_span(c), reads_span(s), reads(slots), reads(k_scale), reads(k_offset),
          reads(ckv_scale), reads(ckv_offset), reads_v, writes_span(k_target), writes_span(ckv_target), writes(k_out),
          writes(ckv_out)});
  auto copy_back = [](Tensor to, const Tensor& from) {
    if (to.data_ptr() != from.data_ptr()) torch::stable::copy_(to, from);
  };
  copy_back(k_cache, k_target);
  copy_back(ckv_cache, ckv_target);
  return {k_out, ckv_out};
}

/// Composite over the operator above, whose schema says what it writes, so that torch.compile keeps it and its order.
std::tuple<Tensor, Tensor, Tensor, Tensor> kv_rmsnorm_rope_cache(
    const Tensor& kv, const Tensor& gamma, const Tensor& cos, const Tensor& sin, const Tensor& index,
    const Tensor& k_cache, const Tensor& ckv_cache, OptionalTensor k_rope_scale, OptionalTensor c_kv_scale,
    OptionalTensor k_rope_offset, OptionalTensor c_kv_offset, OptionalTensor v, double epsilon, String cache_mode,
    bool is_output_kv) {
  int64_t mode = cache_mode_number(cache_mode);
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  StableIValue stack[] = {from(kv),          from(gamma),     from(cos),          from(sin),        from(index),
                          from(k_cache),     from(ckv_cache), from(k_rope_scale), from(c_kv_scale), from(k_rope_offset),
                          from(c_kv_offset), from(v),         from(epsilon),      from(mode),       from(is_output_kv)};
  try {
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("npu::_npu_kv_rmsnorm_rope_cache", "", stack, TORCH_ABI_VERSION));
  } catch (const std::runtime_error& error) {
    // A call through the dispatcher keeps the text of an exception but not its type.
    if (std::strstr(error.what(), kIndexError) != nullptr) throw std::out_of_range(error.what());
    throw;
  }
  return {k_cache, ckv_cache, to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def(
      "npu_kv_rmsnorm_rope_cache(Tensor kv, Tensor gamma, Tensor cos, Tensor sin, Tensor index, Tensor k_cache, Tensor "
      "ckv_cache, *, Tensor? k_rope_scale=None, Tensor? c_kv_scale=None, Tensor? k_rope_offset=None, Tensor? "
      "c_kv_offset=None, Tensor? v=None, float epsilon=1e-5, str cache_mode='Norm', bool is_output_kv=False) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "_npu_kv_rmsnorm_rope_cache(Tensor kv, Tensor gamma, Tensor cos, Tensor sin, Tensor index, Tensor(a!) k_cache, "
      "Tensor(b!) ckv_cache, Tensor? k_rope_scale, Tensor? c_kv_scale, Tensor? k_rope_offset, Tensor? c_kv_offset, "
      "Tensor? v, float epsilon, int cache_mode, bool is_output_kv) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) { m.impl("_npu_kv_rmsnorm_rope_cache", TORCH_BOX(&write_cache)); }

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) { m.impl("_npu_kv_rmsnorm_rope_cache", TORCH_BOX(&write_cache)); }

STABLE_TORCH_LIBRARY_IMPL(npu, CompositeImplicitAutograd, m) {
  m.impl("npu_kv_rmsnorm_rope_cache", TORCH_BOX(&kv_rmsnorm_rope_cache));
}

}  // namespace npu::ops_llm
