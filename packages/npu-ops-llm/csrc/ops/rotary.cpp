// npu_rotary_mul, its gradients and npu_interleave_rope, npu_apply_rotary_pos_emb: schemas, checks and tasks.  Fakes
// and autograd: src/npu_ops_llm/rotary.py.
#include "../kernels/rotary.h"

#include <algorithm>
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

const KernelTables<RotaryKernels> kTables = {{
    &rotary_kernels_base,
#if defined(__x86_64__)
    &rotary_kernels_avx2,
    &rotary_kernels_avx512,
    &rotary_kernels_avx512_bf16,
#endif
}};

/// All dims but the last.
Sizes leading_of(const Tensor& tensor) { return Sizes(tensor.sizes().data(), tensor.sizes().size() - 1); }

int64_t columns_of(const Tensor& tensor) { return tensor.sizes().back(); }

/// Leading dims in the order in which rows are visited.
struct DimOrder {
  static constexpr size_t kMost = 64;  // torch has no tensors of more dims
  size_t count = 0;
  uint8_t dims[kMost];

  void append(size_t dim) { dims[count++] = static_cast<uint8_t>(dim); }
};

/// As rows_of, with the leading dims taken in `order`.
npu_strided rows_in_order(const Tensor& tensor, Sizes leading, const DimOrder& order) {
  npu_strided view{};
  view.data = tensor.data_ptr();
  auto sizes = tensor.sizes(), strides = tensor.strides();
  for (size_t i = 0; i < order.count; ++i) {
    size_t d = order.dims[i];
    if (leading[d] == 1) continue;
    int64_t stride = sizes[d] == 1 ? 0 : strides[d];
    if (view.dims > 0 && view.strides[view.dims - 1] == stride * leading[d]) {
      view.sizes[view.dims - 1] *= leading[d];
      view.strides[view.dims - 1] = stride;
      continue;
    }
    if (view.dims == NPU_MAX_DIMS) throw std::runtime_error("a tensor of more than 8 dims that cannot be merged");
    view.sizes[view.dims] = leading[d];
    view.strides[view.dims++] = stride;
  }
  return view;
}

/// The order in which the rows of `tensor` lie in memory: heads of a transposed view are visited token by token.
/// npu_interleave_rope of 2048 tokens and 32 heads of 64 takes 1.8 ms, in the order of the result 3.4 ms.
DimOrder memory_order(const Tensor& tensor) {
  DimOrder order;
  auto strides = tensor.strides();
  for (size_t d = 0; d + 1 < strides.size(); ++d) {
    size_t i = order.count++;
    for (; i > 0 && strides[order.dims[i - 1]] < strides[d]; --i) order.dims[i] = order.dims[i - 1];
    order.dims[i] = static_cast<uint8_t>(d);
  }
  return order;
}

// ---- npu_rotary_mul, npu_interleave_rope ----------------------------------------------------------------------------

struct RowsTask {
  const RotaryKernels* kernels;
  RotaryRows work;
};

npu_status run_rows(void* payload, npu_error* error) {
  const auto& task = *static_cast<const RowsTask*>(payload);
  auto rows = [&](int64_t begin, int64_t end) { task.kernels->rotate(&task.work, begin, end); };
  return parallel_for(task.work.rows, grain_for(task.work.columns), rows, error);
}

/// The work on rows of x, cos and sin, all with contiguous rows, into y.  `turned` is NULL but for ROTARY_GIVEN.
RotaryRows rows_work(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& y, int32_t mode,
                     const Tensor* turned = nullptr) {
  Sizes leading = leading_of(x);
  DimOrder order = memory_order(x);
  auto view = [&](const Tensor& tensor) { return rows_in_order(tensor, leading, order); };
  return {view(x),           view(cos),       view(sin),   view(y), turned ? view(*turned) : npu_strided{},
          count_of(leading), columns_of(cos), dtype_of(x), mode};
}

int32_t rotary_mul_mode(const char* op, const String& mode) {
  NPU_CHECK_ARG(mode == "half" || mode == "interleave", op, "rotary_mode",
                "The rotary_mode of npu_rotary_mul should be half or interleave, but got ", mode.value);
  return mode == "half" ? ROTARY_HALF : ROTARY_INTERLEAVE;
}

/// x and factors r1, r2 that broadcast to it.
void check_factors(const char* op, const char* name, const Tensor& x, const Tensor& r1, const Tensor& r2) {
  Device device = device_of(x);
  check_same_device(op, device, "r1", r1);
  check_same_device(op, device, "r2", r2);
  check_dtype(op, name, x, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  check_dtype(op, "r1", r1, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  check_dtype(op, "r2", r2, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  Sizes sizes = x.sizes(), factor = r1.sizes();
  NPU_CHECK_ARG(!sizes.empty() && sizes.back() % 2 == 0, op, name,
                "expected at least one dim and an even last dim, got shape ", shape_text(sizes));
  NPU_CHECK_ARG(factor.size() == sizes.size() && factor.back() == sizes.back(), op, "r1", "expected as many dims as ",
                name, " and the same last dim; ", name, " has shape ", shape_text(sizes), ", r1 has shape ",
                shape_text(factor));
  for (size_t d = 0; d < sizes.size(); ++d) {
    NPU_CHECK_ARG(factor[d] == sizes[d] || factor[d] == 1, op, "r1", "expected a shape that broadcasts to ", name,
                  "'s; ", name, " has shape ", shape_text(sizes), ", r1 has shape ", shape_text(factor));
  }
  check_sizes(op, "r2", r2, factor, "(as r1)");
}

/// In the dtype of x, with contiguous rows.
Tensor factor_like(const Tensor& x, const Tensor& factor) {
  npu_dtype dtype = dtype_of(x);
  if (dtype_of(factor) == dtype) return with_contiguous_rows(factor);
  return with_contiguous_rows(torch::stable::to(factor, static_cast<torch::headeronly::ScalarType>(dtype)));
}

Tensor rotary_mul(const Tensor& self, const Tensor& r1, const Tensor& r2, String rotary_mode, OptionalTensor rotate) {
  constexpr const char* kOp = "npu_rotary_mul";
  int32_t mode = rotary_mul_mode(kOp, rotary_mode);
  check_factors(kOp, "self", self, r1, r2);
  Device device = device_of(self);
  if (rotate.has_value()) {
    check_same_device(kOp, device, "rotate", rotate);
    check_dtype(kOp, "rotate", *rotate, {dtype_of(self)});
    int64_t square[] = {columns_of(self), columns_of(self)};
    check_sizes(kOp, "rotate", *rotate, Sizes(square, 2), "(a matrix for the last dim of self)");
  }
  Tensor x = with_contiguous_rows(self), cos = factor_like(self, r1), sin = factor_like(self, r2);
  Tensor y = allocate(self.sizes(), dtype_of(self), device);
  if (self.numel() == 0) return y;
  if (rotate.has_value()) {
    Tensor turned = as_contiguous(torch::stable::matmul(self, *rotate));
    RowsTask task{&kTables.active(), rows_work(x, cos, sin, y, ROTARY_GIVEN, &turned)};
    launch(device, "npu::npu_rotary_mul", run_rows, task,
           {reads_span(x), reads_span(cos), reads_span(sin), reads(turned), writes(y)});
    return y;
  }
  RowsTask task{&kTables.active(), rows_work(x, cos, sin, y, mode)};
  launch(device, "npu::npu_rotary_mul", run_rows, task, {reads_span(x), reads_span(cos), reads_span(sin), writes(y)});
  return y;
}

/// Only the gradient of self, which needs no self.
Tensor rotary_mul_grad_self(const Tensor& grad, const Tensor& r1, const Tensor& r2, String rotary_mode) {
  constexpr const char* kOp = "npu_rotary_mul_backward";
  bool half = rotary_mul_mode(kOp, rotary_mode) == ROTARY_HALF;
  check_factors(kOp, "grad", grad, r1, r2);
  Device device = device_of(grad);
  Tensor upstream = with_contiguous_rows(grad), cos = factor_like(grad, r1), sin = factor_like(grad, r2);
  Tensor dx = allocate(grad.sizes(), dtype_of(grad), device);
  if (grad.numel() == 0) return dx;
  RowsTask task{&kTables.active(),
                rows_work(upstream, cos, sin, dx, half ? ROTARY_HALF_TRANSPOSED : ROTARY_INTERLEAVE_TRANSPOSED)};
  launch(device, "npu::npu_rotary_mul_backward", run_rows, task,
         {reads_span(upstream), reads_span(cos), reads_span(sin), writes(dx)});
  return dx;
}

Tensor interleave_rope(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  constexpr const char* kOp = "npu_interleave_rope";
  Device device = device_of(x);
  check_same_device(kOp, device, "cos", cos);
  check_same_device(kOp, device, "sin", sin);
  npu_dtype dtype = dtype_of(x);
  check_dtype(kOp, "x", x, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  check_dtype(kOp, "cos", cos, {dtype});
  check_dtype(kOp, "sin", sin, {dtype});
  Sizes sizes = x.sizes(), factor = cos.sizes();
  NPU_CHECK_ARG(sizes.size() == 4 && sizes[3] % 2 == 0, kOp, "x",
                "expected 4 dims (B, N, S, D) with an even D, got shape ", shape_text(sizes));
  NPU_CHECK_ARG(factor.size() == 4 && (factor[0] == sizes[0] || factor[0] == 1) && factor[1] == 1 &&
                    (factor[2] == sizes[2] || factor[2] == 1) && factor[3] == sizes[3],
                kOp, "cos", "expected shape (B, 1, S, D) or (B, 1, 1, D); x has shape ", shape_text(sizes),
                ", cos has shape ", shape_text(factor));
  check_sizes(kOp, "sin", sin, factor, "(as cos)");
  Tensor y = allocate(sizes, dtype, device);
  if (x.numel() == 0) return y;
  Tensor from = with_contiguous_rows(x), c = with_contiguous_rows(cos), s = with_contiguous_rows(sin);
  RowsTask task{&kTables.active(), rows_work(from, c, s, y, ROTARY_DEINTERLEAVE)};
  launch(device, "npu::npu_interleave_rope", run_rows, task,
         {reads_span(from), reads_span(c), reads_span(s), writes(y)});
  return y;
}

// ---- npu_rotary_mul_backward ----------------------------------------------------------------------------------------

struct BackwardTask {
  const RotaryKernels* kernels;
  RotaryBackward work;
};

npu_status run_backward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const BackwardTask*>(payload);
  const RotaryBackward& work = task.work;
  auto parts = [&](int64_t begin, int64_t end) { task.kernels->backward(&work, begin, end); };
  int64_t rows_per_part = (work.rows_per_group + work.parts - 1) / work.parts;
  npu_status status = parallel_for(work.groups * work.parts, grain_for(work.columns * rows_per_part), parts, error);
  if (status != NPU_OK) return status;
  auto groups = [&](int64_t begin, int64_t end) { task.kernels->sum_partials(&work, begin, end); };
  return parallel_for(work.groups, grain_for(work.columns * work.parts * 2), groups, error);
}

/// Partial sums of one group: enough for any team, and short enough for float32.
int64_t parts_of(int64_t groups, int64_t rows_per_group) {
  constexpr int64_t kParts = 64, kLeastRows = 16, kMostRows = 2048;
  int64_t wanted = groups >= kParts ? 1 : std::min(kParts / std::max<int64_t>(groups, 1), rows_per_group / kLeastRows);
  return std::max({wanted, (rows_per_group + kMostRows - 1) / kMostRows, int64_t{1}});
}

std::tuple<Tensor, Tensor, Tensor> rotary_mul_backward(const Tensor& grad, const Tensor& self, const Tensor& r1,
                                                       const Tensor& r2, String rotary_mode) {
  constexpr const char* kOp = "npu_rotary_mul_backward";
  int32_t mode = rotary_mul_mode(kOp, rotary_mode);
  check_factors(kOp, "self", self, r1, r2);
  Device device = device_of(self);
  npu_dtype dtype = dtype_of(self);
  check_same_device(kOp, device, "grad", grad);
  check_dtype(kOp, "grad", grad, {dtype});
  check_sizes(kOp, "grad", grad, self.sizes(), "(as self)");

  Sizes leading = leading_of(self);
  DimOrder order;
  int64_t groups = 1, rows_per_group = 1;
  for (size_t d = 0; d < leading.size(); ++d) {
    if (r1.size(d) != leading[d]) continue;
    order.append(d);
    groups *= leading[d];
  }
  for (size_t d = 0; d < leading.size(); ++d) {
    if (r1.size(d) == leading[d]) continue;
    order.append(d);
    rows_per_group *= leading[d];
  }

  Tensor upstream = with_contiguous_rows(grad), x = with_contiguous_rows(self);
  Tensor cos = factor_like(self, r1), sin = factor_like(self, r2);
  Tensor dx = allocate(self.sizes(), dtype, device);
  Tensor dcos = allocate(r1.sizes(), dtype, device), dsin = allocate(r1.sizes(), dtype, device);
  int64_t columns = columns_of(self), parts = parts_of(groups, rows_per_group);
  int64_t partial_sizes[] = {groups, parts, 2, columns};
  Tensor partials = allocate(Sizes(partial_sizes, 4), NPU_FLOAT32, device);
  if (dcos.numel() > 0) {
    auto view = [&](const Tensor& tensor) { return rows_in_order(tensor, leading, order); };
    BackwardTask task{&kTables.active(),
                      {view(upstream), view(x), view(cos), view(sin), view(dx), dcos.data_ptr(), dsin.data_ptr(),
                       static_cast<float*>(partials.data_ptr()), groups, rows_per_group, parts, columns, dtype, mode}};
    launch(device, "npu::npu_rotary_mul_backward", run_backward, task,
           {reads_span(upstream), reads_span(x), reads_span(cos), reads_span(sin), writes(partials), writes(dx),
            writes(dcos), writes(dsin)});
  }
  return {dx, dcos, dsin};
}

// ---- npu_apply_rotary_pos_emb ---------------------------------------------------------------------------------------

struct ApplyTask {
  const RotaryKernels* kernels;
  RotaryRows query, key;
};

npu_status run_apply(void* payload, npu_error* error) {
  const auto& task = *static_cast<const ApplyTask*>(payload);
  const int64_t queries = task.query.rows;
  auto rows = [&](int64_t begin, int64_t end) {
    if (begin < queries) task.kernels->rotate(&task.query, begin, std::min(end, queries));
    if (end > queries) task.kernels->rotate(&task.key, std::max(begin, queries) - queries, end - queries);
  };
  return parallel_for(queries + task.key.rows, grain_for(task.query.columns), rows, error);
}

constexpr const char* kApply = "npu_apply_rotary_pos_emb";

/// Rotates query and key in place; `heads` is the dim of the heads.
void apply_rotary_in_place(const Tensor& query, const Tensor& key, const Tensor& cos, const Tensor& sin, int64_t heads,
                           int64_t mode) {
  Device device = device_of(query);
  npu_dtype dtype = dtype_of(query);
  check_dtype(kApply, "query", query, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  for (auto [name, tensor] : {std::pair{"key", &key}, {"cos", &cos}, {"sin", &sin}}) {
    check_same_device(kApply, device, name, *tensor);
    check_dtype(kApply, name, *tensor, {dtype});
    NPU_CHECK_ARG(tensor->dim() == query.dim(), kApply, name, "expected as many dims as query; query has shape ",
                  shape_text(query.sizes()), ", ", name, " has shape ", shape_text(tensor->sizes()));
  }
  Sizes sizes = query.sizes();
  int64_t rotated = columns_of(cos), last = static_cast<int64_t>(sizes.size()) - 1;
  int64_t pieces = mode == ROTARY_QUARTER ? 4 : 2;
  for (int64_t d = 0; d <= last; ++d) {
    NPU_CHECK_ARG(d == heads || key.size(d) == sizes[d], kApply, "key",
                  "expected query's shape except for the number of heads; query has shape ", shape_text(sizes),
                  ", key has shape ", shape_text(key.sizes()));
    int64_t size = cos.size(d);
    NPU_CHECK_ARG(d == last || size == 1 || (d != heads && size == sizes[d]), kApply, "cos",
                  "expected query's shape with 1 for the heads (and where it broadcasts); query has shape ",
                  shape_text(sizes), ", cos has shape ", shape_text(cos.sizes()));
  }
  NPU_CHECK_ARG(rotated <= sizes[last] && rotated % pieces == 0, kApply, "cos",
                "expected a last dim that is a multiple of ", pieces, " and at most query's ", sizes[last], ", got ",
                rotated);
  check_sizes(kApply, "sin", sin, cos.sizes(), "(as cos)");
  check_writable(kApply, "query", query);
  check_writable(kApply, "key", key);
  if (rotated == 0) return;

  Tensor q = with_contiguous_rows(query), k = with_contiguous_rows(key);
  Tensor c = with_contiguous_rows(cos), s = with_contiguous_rows(sin);
  auto work = static_cast<int32_t>(mode);
  ApplyTask task{&kTables.active(), rows_work(q, c, s, q, work), rows_work(k, c, s, k, work)};
  launch(device, "npu::npu_apply_rotary_pos_emb", run_apply, task,
         {reads_span(c), reads_span(s), writes_span(q), writes_span(k)});
  // Only where elements of a row are not neighbours: the result was made in a copy.
  auto copy_back = [](Tensor to, const Tensor& from) {
    if (to.data_ptr() != from.data_ptr()) torch::stable::copy_(to, from);
  };
  copy_back(query, q);
  copy_back(key, k);
}

/// Composite over the operator above, whose schema says what it writes, so that torch.compile keeps it and its order.
std::tuple<Tensor, Tensor> apply_rotary_pos_emb(const Tensor& query, const Tensor& key, const Tensor& cos,
                                                const Tensor& sin, String layout, String rotary_mode) {
  NPU_CHECK_ARG(rotary_mode == "half" || rotary_mode == "interleave" || rotary_mode == "quarter", kApply, "rotary_mode",
                "The layout should be half/quarter/interleave, got ", rotary_mode.value);
  int64_t mode = rotary_mode == "half" ? ROTARY_HALF : rotary_mode == "interleave" ? ROTARY_INTERLEAVE : ROTARY_QUARTER;
  // Any other layout is BSND.
  bool packed = layout == "TND";
  int64_t heads = packed || layout == "BNSD" ? 1 : 2;
  NPU_CHECK_ARG(query.dim() == (packed ? 3 : 4), kApply, "query", "expected ", packed ? 3 : 4, " dims for layout ",
                layout.value, ", got ", query.dim());
  call_operator("npu::_npu_apply_rotary_pos_emb_", query, key, cos, sin, heads, mode);
  return {query, key};
}

}  // namespace

// An argument of an operator that writes must not be called `mode`: torch's functionalisation passes one of that name.
STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("npu_rotary_mul(Tensor self, Tensor r1, Tensor r2, str rotary_mode='half', Tensor? rotate=None) -> Tensor");
  m.def(
      "npu_rotary_mul_backward(Tensor grad, Tensor self, Tensor r1, Tensor r2, str rotary_mode='half') -> (Tensor, "
      "Tensor, Tensor)");
  m.def("_npu_rotary_mul_grad_self(Tensor grad, Tensor r1, Tensor r2, str rotary_mode) -> Tensor");
  m.def("npu_interleave_rope(Tensor x, Tensor cos, Tensor sin) -> Tensor");
  m.def(
      "npu_apply_rotary_pos_emb(Tensor query, Tensor key, Tensor cos, Tensor sin, str layout='BSND', str "
      "rotary_mode='half') -> (Tensor, Tensor)");
  m.def(
      "_npu_apply_rotary_pos_emb_(Tensor(a!) query, Tensor(b!) key, Tensor cos, Tensor sin, int heads_dim, int "
      "rotary_mode) "
      "-> "
      "()");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_rotary_mul", TORCH_BOX(&rotary_mul));
  m.impl("npu_rotary_mul_backward", TORCH_BOX(&rotary_mul_backward));
  m.impl("_npu_rotary_mul_grad_self", TORCH_BOX(&rotary_mul_grad_self));
  m.impl("npu_interleave_rope", TORCH_BOX(&interleave_rope));
  m.impl("_npu_apply_rotary_pos_emb_", TORCH_BOX(&apply_rotary_in_place));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_rotary_mul", TORCH_BOX(&rotary_mul));
  m.impl("npu_rotary_mul_backward", TORCH_BOX(&rotary_mul_backward));
  m.impl("_npu_rotary_mul_grad_self", TORCH_BOX(&rotary_mul_grad_self));
  m.impl("npu_interleave_rope", TORCH_BOX(&interleave_rope));
  m.impl("_npu_apply_rotary_pos_emb_", TORCH_BOX(&apply_rotary_in_place));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CompositeImplicitAutograd, m) {
  m.impl("npu_apply_rotary_pos_emb", TORCH_BOX(&apply_rotary_pos_emb));
}

}  // namespace npu::ops_llm
