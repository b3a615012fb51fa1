// npu_scatter_nd_update and its in-place form: schemas, checks and task.  Fake kernels: src/npu_ops_llm/scatter.py.
#include <cstdio>
#include <optional>
#include <vector>

#include "npu/kernels/aliasing.h"
#include "npu/kernels/box.h"
#include "npu/kernels/indexed_writes.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/stable_tensor.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

/// Writer i puts updates[i], a box of self's last dims, at the place that its `depth` indices name.
struct ScatterTask {
  Box row;
  char* self;
  const char* updates;
  Indices indices;
  int64_t writers, depth, from_stride;                 // bytes
  int64_t sizes[NPU_MAX_DIMS], strides[NPU_MAX_DIMS];  // of the indexed dims; strides in bytes
  const void* cloned;                                  ///< what self is a copy of, made first; NULL in place
  int64_t cloned_bytes;

  int64_t locate(int64_t i) const {
    int64_t place = 0;
    for (int64_t k = 0; k < depth; ++k) {
      int64_t index = indices[i * depth + k];
      if (index < 0 || index >= sizes[k]) return kOutOfRange;
      place += index * strides[k];
    }
    return place;
  }
};

npu_status describe_bad_index(const ScatterTask& task, int64_t i, npu_error* error) {
  for (int64_t k = 0; k < task.depth; ++k) {
    int64_t index = task.indices[i * task.depth + k];
    if (index >= 0 && index < task.sizes[k]) continue;
    std::snprintf(error->message, sizeof(error->message),
                  "argument indices: index %lld in element [%lld, %lld] (leading dims counted as one) is out of range: "
                  "expected 0 <= index < %lld, the size of self on dim %lld",
                  (long long)index, (long long)i, (long long)k, (long long)task.sizes[k], (long long)k);
    break;
  }
  return NPU_ERROR_INDEX;
}

npu_status run_scatter(void* payload, npu_error* error) {
  const auto& task = *static_cast<const ScatterTask*>(payload);
  auto locate = [&](int64_t i) { return task.locate(i); };
  Survey found;
  npu_status status = survey_writers(task.writers, locate, found, error);
  if (status != NPU_OK) return status;
  if (found.first_bad < task.writers) return describe_bad_index(task, found.first_bad, error);
  if (task.cloned != nullptr) {
    status = copy_bytes(task.self, task.cloned, task.cloned_bytes, error);
    if (status != NPU_OK) return status;
  }
  auto write = [&](int64_t i, int64_t place, int64_t begin, int64_t end) {
    copy_box(task.row, task.self + place, task.updates + i * task.from_stride, begin, end);
  };
  const char* base = task.row.streams ? nullptr : task.self;
  return write_in_order(task.writers, found.rising, task.row.units(), task.row.bytes(), base, locate, write, error);
}

/// Elements from one position of the `leading` dims to the next; none when no one stride leads through them.
std::optional<int64_t> leading_stride(const Tensor& tensor, size_t leading) {
  auto sizes = tensor.sizes(), strides = tensor.strides();
  std::optional<int64_t> step;
  int64_t next = 0;  // stride that the next dim must have
  for (size_t d = leading; d-- > 0;) {
    if (sizes[d] == 1) continue;
    if (!step.has_value()) step = strides[d];
    else if (strides[d] != next) return std::nullopt;
    next = strides[d] * sizes[d];
  }
  return step.value_or(0);
}

Tensor scatter(const char* op, const char* task_name, const Tensor& self, const Tensor& indices, const Tensor& updates,
               bool in_place) {
  Device device = device_of(self);
  check_same_device(op, device, "indices", indices);
  check_same_device(op, device, "updates", updates);
  Sizes sizes = self.sizes(), index_sizes = indices.sizes(), update_sizes = updates.sizes();
  int64_t dims = static_cast<int64_t>(sizes.size());
  NPU_CHECK_ARG(dims >= 1 && dims <= 8, op, "self", "expected 1 to 8 dims, got shape ", shape_text(sizes));
  NPU_CHECK_ARG(dtype_of(updates) == dtype_of(self), op, "updates", "expected dtype ", npu_dtype_name(dtype_of(self)),
                " (as self), got ", npu_dtype_name(dtype_of(updates)));
  check_dtype(op, "indices", indices, {NPU_INT32, NPU_INT64});
  NPU_CHECK_ARG(index_sizes.size() >= 2, op, "indices", "expected at least 2 dims, got shape ", shape_text(index_sizes),
                "; the last dim holds the indices of one place in self");
  size_t leading = index_sizes.size() - 1;
  int64_t depth = index_sizes[leading];
  NPU_CHECK_ARG(depth <= dims, op, "indices", "expected at most ", dims,
                " (the dims of self) on the last dim, got shape ", shape_text(index_sizes));
  std::vector<int64_t> expected(index_sizes.begin(), index_sizes.begin() + leading);
  expected.insert(expected.end(), sizes.begin() + depth, sizes.end());
  check_sizes(op, "updates", updates, Sizes(expected.data(), expected.size()),
              "(indices without its last dim, then the dims of self that are not indexed)");
  if (in_place) check_writable(op, "self", self);

  ScatterTask task{};
  Tensor index = as_contiguous(indices), source = updates, target = self;
  if (in_place) {
    index = apart_from(index, self);
    source = apart_from(updates, self);
  } else if (self.is_contiguous()) {
    target = allocate(sizes, dtype_of(self), device);
    task.cloned = self.data_ptr();
    task.cloned_bytes = bytes_of(self);
  } else {
    target = torch::stable::contiguous(self);
  }
  task.writers = updates.numel() == 0 ? 0 : 1;
  for (size_t d = 0; d < leading; ++d) task.writers *= index_sizes[d];
  if (task.writers == 0 && task.cloned_bytes == 0) return target;

  int64_t size = static_cast<int64_t>(self.element_size());
  std::optional<int64_t> step = leading_stride(source, leading);
  if (!step.has_value()) {
    source = torch::stable::contiguous(source);
    step = leading_stride(source, leading);
  }
  auto to = target.strides(), from = source.strides();
  task.row = box_of_run(size);
  for (int64_t d = dims - 1; d >= depth; --d) {
    add_dim(task.row, sizes[d], to[d] * size, from[leading + d - depth] * size);
  }
  stream_if_large(task.row, task.writers * task.row.bytes());
  for (int64_t k = 0; k < depth; ++k) {
    task.sizes[k] = sizes[k];
    task.strides[k] = to[k] * size;
  }
  task.from_stride = *step * size;
  task.self = static_cast<char*>(target.data_ptr());
  task.updates = static_cast<const char*>(source.data_ptr());
  task.indices = {index.data_ptr(), dtype_of(index) == NPU_INT64};
  task.depth = depth;
  launch(device, task_name, run_scatter, task,
         {reads_span(self), reads(index), reads_span(source), writes_span(target)});
  return target;
}

Tensor scatter_nd_update(const Tensor& self, const Tensor& indices, const Tensor& updates) {
  return scatter("npu_scatter_nd_update", "npu::npu_scatter_nd_update", self, indices, updates, false);
}

void write_nd(const Tensor& self, const Tensor& indices, const Tensor& updates) {
  scatter("npu_scatter_nd_update_", "npu::npu_scatter_nd_update_", self, indices, updates, true);
}

Tensor scatter_nd_update_(const Tensor& self, const Tensor& indices, const Tensor& updates) {
  call_indexed("npu::_npu_scatter_nd_update_", self, indices, updates);
  return self;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("npu_scatter_nd_update(Tensor self, Tensor indices, Tensor updates) -> Tensor");
  m.def("npu_scatter_nd_update_(Tensor(a!) self, Tensor indices, Tensor updates) -> Tensor(a!)");
  m.def("_npu_scatter_nd_update_(Tensor(a!) self, Tensor indices, Tensor updates) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(npu, CompositeImplicitAutograd, m) {
  m.impl("npu_scatter_nd_update_", TORCH_BOX(&scatter_nd_update_));
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_scatter_nd_update", TORCH_BOX(&scatter_nd_update));
  m.impl("_npu_scatter_nd_update_", TORCH_BOX(&write_nd));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_scatter_nd_update", TORCH_BOX(&scatter_nd_update));
  m.impl("_npu_scatter_nd_update_", TORCH_BOX(&write_nd));
}

}  // namespace npu::ops_llm
