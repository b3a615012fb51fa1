// scatter_update, npu_quant_scatter and their in-place forms: schemas, checks and tasks.  Fake kernels:
// src/npu_ops_llm/scatter.py.
#include "../kernels/scatter.h"

#include <cstdio>

#include "npu/kernels/aliasing.h"
#include "npu/kernels/box.h"
#include "npu/kernels/dtype_argument.h"
#include "npu/kernels/indexed_writes.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/stable_tensor.h"
#include "npu/kernels/strings.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<ScatterKernels> kTables = {{
    &scatter_kernels_base,
#if defined(__x86_64__)
    &scatter_kernels_avx2,
    &scatter_kernels_avx512,
    &scatter_kernels_avx512_bf16,
#endif
}};

/// Names of the operator in messages and of its task.
struct Name {
  const char* op;
  const char* task;
};

/// Writer i puts updates[i] at index indices[i] of `axis` in batch i, or at indices[i, 1] in batch indices[i, 0].
struct UpdateTask {
  Box slice;     ///< updates[i]
  Box position;  ///< updates[i] at one index of axis
  char* self;
  const char* updates;
  Indices indices;
  bool pairs;
  int64_t writers, length, batches, axis_size;                       // length: size of updates on axis
  int64_t batch_stride, axis_stride, from_stride, from_axis_stride;  // bytes
  int32_t axis;
  const void* cloned;  ///< what self is a copy of, made first; NULL in place
  int64_t cloned_bytes;
  const ScatterKernels* kernels;  ///< NULL: updates are copied as they are
  QuantScatterRows rows;

  bool in_range(int64_t i, int64_t& batch, int64_t& start) const {
    batch = pairs ? indices[2 * i] : i;
    start = pairs ? indices[2 * i + 1] : indices[i];
    return batch >= 0 && batch < batches && start >= 0 && start <= axis_size - length;
  }
};

npu_status describe_bad_index(const UpdateTask& task, int64_t i, npu_error* error) {
  int64_t batch = 0, start = 0;
  task.in_range(i, batch, start);
  bool bad_batch = batch < 0 || batch >= task.batches;
  char element[64];
  if (task.pairs) std::snprintf(element, sizeof(element), "[%lld, %d]", (long long)i, bad_batch ? 0 : 1);
  else std::snprintf(element, sizeof(element), "[%lld]", (long long)i);
  if (bad_batch) {
    std::snprintf(error->message, sizeof(error->message),
                  "argument indices: index %lld in element %s is out of range: expected 0 <= index < %lld, the size of "
                  "self on dim 0",
                  (long long)batch, element, (long long)task.batches);
  } else {
    std::snprintf(error->message, sizeof(error->message),
                  "argument indices: index %lld in element %s is out of range: expected 0 <= index <= %lld, because "
                  "self has size %lld and updates size %lld on dim %d",
                  (long long)start, element, (long long)(task.axis_size - task.length), (long long)task.axis_size,
                  (long long)task.length, task.axis);
  }
  return NPU_ERROR_INDEX;
}

npu_status run_update(void* payload, npu_error* error) {
  const auto& task = *static_cast<const UpdateTask*>(payload);
  auto locate = [&](int64_t i) {
    int64_t batch, start;
    if (!task.in_range(i, batch, start)) return int64_t{kOutOfRange};
    return batch * task.batch_stride + start * task.axis_stride;
  };
  // Slices longer than one index may overlap without being equal: only different batches are surely apart.
  auto rank = [&](int64_t i) {
    int64_t batch, start;
    if (!task.in_range(i, batch, start)) return int64_t{kOutOfRange};
    return task.length == 1 ? locate(i) : batch;
  };
  Survey found;
  npu_status status = survey_writers(task.writers, rank, found, error);
  if (status != NPU_OK) return status;
  if (found.first_bad < task.writers) return describe_bad_index(task, found.first_bad, error);
  if (task.cloned != nullptr) {
    status = copy_bytes(task.self, task.cloned, task.cloned_bytes, error);
    if (status != NPU_OK) return status;
  }
  auto put = [&](const Box& box, char* to, const char* from, int64_t begin, int64_t end) {
    if (task.kernels == nullptr) return copy_box(box, to, from, begin, end);
    auto rows = [&](char* t, int64_t to_stride, const char* f, int64_t from_stride, int64_t count) {
      task.kernels->quantise(&task.rows, t, to_stride, f, from_stride, count);
    };
    walk_box(box, box.dims - 1, to, from, begin, end, rows);
  };
  int64_t slice_bytes = task.slice.bytes();
  const char* base = task.slice.streams ? nullptr : task.self;
  if (!task.pairs || found.rising) {
    auto write = [&](int64_t i, int64_t place, int64_t begin, int64_t end) {
      put(task.slice, task.self + place, task.updates + i * task.from_stride, begin, end);
    };
    return write_in_order(task.writers, true, task.slice.units(), slice_bytes, base, locate, write, error);
  }
  // One writer per index of axis: those are equal or apart.
  auto locate_position = [&](int64_t w) {
    int64_t place = locate(w / task.length);
    return place < 0 ? place : place + w % task.length * task.axis_stride;
  };
  auto write = [&](int64_t w, int64_t place, int64_t begin, int64_t end) {
    const char* from = task.updates + w / task.length * task.from_stride + w % task.length * task.from_axis_stride;
    put(task.position, task.self + place, from, begin, end);
  };
  return write_in_order(task.writers * task.length, false, task.position.units(), slice_bytes / task.length, base,
                        locate_position, write, error);
}

int64_t wrapped_axis(const char* op, int64_t axis, int64_t dims) {
  NPU_CHECK_ARG(axis >= -dims && axis < dims, op, "axis", "expected ", -dims, " <= axis < ", dims, ", got ", axis);
  return axis < 0 ? axis + dims : axis;
}

/// Checks shapes and fills in what does not depend on whether updates are quantised.
UpdateTask check_update(const char* op, const Tensor& self, const Tensor& indices, const Tensor& updates,
                        int64_t axis_argument) {
  Device device = device_of(self);
  check_same_device(op, device, "indices", indices);
  check_same_device(op, device, "updates", updates);
  Sizes sizes = self.sizes(), update_sizes = updates.sizes(), index_sizes = indices.sizes();
  int64_t dims = static_cast<int64_t>(sizes.size());
  NPU_CHECK_ARG(dims >= 2 && dims <= 8, op, "self", "expected 2 to 8 dims, got shape ", shape_text(sizes));
  NPU_CHECK_ARG(update_sizes.size() == sizes.size(), op, "updates", "expected as many dims as self, which has shape ",
                shape_text(sizes), ", got shape ", shape_text(update_sizes));
  check_dtype(op, "indices", indices, {NPU_INT32, NPU_INT64});
  int64_t axis = wrapped_axis(op, axis_argument, dims);
  NPU_CHECK_ARG(axis != 0, op, "axis", "dim 0 is the batch, which indices select; expected another dim, got ",
                axis_argument);
  NPU_CHECK_ARG(index_sizes.size() <= 2, op, "indices", "expected at most 2 dims, got shape ", shape_text(index_sizes));
  bool pairs = index_sizes.size() == 2;
  NPU_CHECK_ARG(!pairs || index_sizes[1] == 2, op, "indices",
                "expected shape (updates, 2), pairs of a batch and an index on axis, got ", shape_text(index_sizes));
  int64_t writers = index_sizes.size() == 0 ? 1 : index_sizes[0];
  NPU_CHECK_ARG(update_sizes[0] == writers, op, "updates", "expected size ", writers,
                " on dim 0, one for each of indices, got shape ", shape_text(update_sizes));
  NPU_CHECK_ARG(pairs || writers <= sizes[0], op, "updates", "expected at most ", sizes[0],
                " on dim 0, the batches of self, got shape ", shape_text(update_sizes));
  for (int64_t d = 1; d < dims; ++d) {
    bool fits = d == axis ? update_sizes[d] <= sizes[d] : update_sizes[d] == sizes[d];
    NPU_CHECK_ARG(fits, op, "updates", d == axis ? "expected at most size " : "expected size ", sizes[d], " on dim ", d,
                  ", as self; self has shape ", shape_text(sizes), ", updates has shape ", shape_text(update_sizes));
  }
  UpdateTask task{};
  task.pairs = pairs;
  task.writers = writers;
  task.length = update_sizes[axis];
  task.batches = sizes[0];
  task.axis_size = sizes[axis];
  task.axis = static_cast<int32_t>(axis);
  return task;
}

void lay_out(UpdateTask& task, const Tensor& self, const Tensor& updates, const Tensor& indices, bool quantised) {
  Sizes sizes = updates.sizes();
  auto to = self.strides(), from = updates.strides();
  int64_t to_size = static_cast<int64_t>(self.element_size()), from_size = static_cast<int64_t>(updates.element_size());
  int64_t dims = static_cast<int64_t>(sizes.size());
  task.slice = task.position = box_of_run(quantised ? 0 : to_size);  // rows to quantise never merge into a run
  for (int64_t d = dims - 1 - quantised; d >= 1; --d) {
    add_dim(task.slice, sizes[d], to[d] * to_size, from[d] * from_size);
    if (d != task.axis) add_dim(task.position, sizes[d], to[d] * to_size, from[d] * from_size);
  }
  if (quantised) {
    task.slice.run = task.position.run = sizes[dims - 1];
    // The innermost loop calls the quantiser, so there must be one.
    for (Box* box : {&task.slice, &task.position}) {
      if (box->dims == 0) box->sizes[box->dims++] = 1;
    }
  }
  for (Box* box : {&task.slice, &task.position}) stream_if_large(*box, task.writers * task.slice.bytes());
  task.batch_stride = to[0] * to_size;
  task.axis_stride = to[task.axis] * to_size;
  task.from_stride = from[0] * from_size;
  task.from_axis_stride = from[task.axis] * from_size;
  task.self = static_cast<char*>(self.data_ptr());
  task.updates = static_cast<const char*>(updates.data_ptr());
  task.indices = {indices.data_ptr(), dtype_of(indices) == NPU_INT64};
}

/// The tensor to write: self, or in the functional form a copy that is complete, or that the task completes.
Tensor target_of(const Tensor& self, bool in_place, UpdateTask& task) {
  if (in_place) return self;
  if (!self.is_contiguous()) return torch::stable::contiguous(self);
  task.cloned = self.data_ptr();
  task.cloned_bytes = bytes_of(self);
  return allocate(self.sizes(), dtype_of(self), device_of(self));
}

Tensor update(Name name, const Tensor& self, const Tensor& indices, const Tensor& updates, int64_t axis,
              bool in_place) {
  UpdateTask task = check_update(name.op, self, indices, updates, axis);
  NPU_CHECK_ARG(dtype_of(updates) == dtype_of(self), name.op, "updates", "expected dtype ",
                npu_dtype_name(dtype_of(self)), " (as self), got ", npu_dtype_name(dtype_of(updates)));
  if (in_place) check_writable(name.op, "self", self);
  Tensor index = as_contiguous(indices), source = updates;
  Tensor target = target_of(self, in_place, task);
  if (in_place) index = apart_from(index, target), source = apart_from(source, target);
  if (updates.numel() == 0) task.writers = 0;
  if (task.writers == 0 && task.cloned_bytes == 0) return target;
  lay_out(task, target, source, index, false);
  launch(device_of(self), name.task, run_update, task,
         {reads_span(self), reads(index), reads_span(source), writes_span(target)});
  return target;
}

struct QuantArguments {
  const Tensor& scales;
  const OptionalTensor& zero_points;
  int64_t axis, quant_axis;
  std::optional<int64_t> dst_type;
};

void check_modes(const char* op, const String& reduce, const std::optional<String>& round_mode) {
  NPU_CHECK_ARG(reduce == "update", op, "reduce", "expected 'update', got '", reduce.value, "'");
  NPU_CHECK_ARG(!round_mode.has_value() || *round_mode == "rint", op, "round_mode", "expected 'rint', got '",
                round_mode->value, "', which is not supported on this device");
}

Tensor quant_update(Name name, const Tensor& self, const Tensor& indices, const Tensor& updates,
                    const QuantArguments& quant, bool in_place) {
  const char* op = name.op;
  int64_t dims = self.dim();
  NPU_CHECK_ARG(dims >= 3 && dims <= 8, op, "self", "expected 3 to 8 dims, got shape ", shape_text(self.sizes()));
  UpdateTask task = check_update(op, self, indices, updates, quant.axis);
  NPU_CHECK_ARG(task.axis != dims - 1, op, "axis", "expected neither the first nor the last dim, got ", quant.axis);
  NPU_CHECK_ARG(wrapped_axis(op, quant.quant_axis, dims) == dims - 1, op, "quant_axis",
                "expected the last dim, -1, got ", quant.quant_axis);
  dtype_argument(op, "dst_type", quant.dst_type, NPU_INT8, {NPU_INT8});
  check_dtype(op, "self", self, {NPU_INT8});
  check_dtype(op, "updates", updates, {NPU_FLOAT16, NPU_BFLOAT16});
  int64_t columns = updates.size(dims - 1);
  Device device = device_of(self);
  check_same_device(op, device, "quant_scales", quant.scales);
  check_same_device(op, device, "quant_zero_points", quant.zero_points);
  check_dtype(op, "quant_scales", quant.scales, {NPU_FLOAT32, NPU_BFLOAT16});
  NPU_CHECK_ARG(quant.scales.numel() == columns, op, "quant_scales", "expected ", columns,
                " elements, the last size of updates, got shape ", shape_text(quant.scales.sizes()));
  if (quant.zero_points.has_value()) {
    check_dtype(op, "quant_zero_points", *quant.zero_points, {NPU_INT32, NPU_BFLOAT16});
    NPU_CHECK_ARG(quant.zero_points->numel() == columns, op, "quant_zero_points", "expected ", columns,
                  " elements, the last size of updates, got shape ", shape_text(quant.zero_points->sizes()));
  }
  if (in_place) check_writable(op, "self", self);
  Tensor index = as_contiguous(indices), scales = as_contiguous(quant.scales);
  OptionalTensor zero_points = as_contiguous(quant.zero_points);
  bool rows_lie = columns <= 1 || updates.stride(dims - 1) == 1;
  Tensor source = rows_lie ? updates : as_contiguous(updates);
  Tensor target = target_of(self, in_place, task);
  if (in_place) {
    index = apart_from(index, target);
    source = apart_from(source, target);
    scales = apart_from(scales, target);
    if (zero_points.has_value()) zero_points = apart_from(*zero_points, target);
  }
  if (updates.numel() == 0) task.writers = 0;
  if (task.writers == 0 && task.cloned_bytes == 0) return target;
  lay_out(task, target, source, index, true);
  task.kernels = &kTables.active();
  task.rows = {scales.data_ptr(),
               pointer_or_null(zero_points),
               columns,
               target.stride(dims - 1),
               dtype_of(updates),
               dtype_of(scales),
               zero_points.has_value() ? dtype_of(*zero_points) : NPU_INT32};
  launch(device, name.task, run_update, task,
         {reads_span(self), reads(index), reads_span(source), reads(scales), reads(zero_points), writes_span(target)});
  return target;
}

// ---- the operators ------------------------------------------------------------------------------------------------

Tensor scatter_update(const Tensor& self, const Tensor& indices, const Tensor& updates, int64_t axis) {
  return update({"scatter_update", "npu::scatter_update"}, self, indices, updates, axis, false);
}

void write_update(const Tensor& self, const Tensor& indices, const Tensor& updates, int64_t axis) {
  update({"scatter_update_", "npu::scatter_update_"}, self, indices, updates, axis, true);
}

Tensor scatter_update_(const Tensor& self, const Tensor& indices, const Tensor& updates, int64_t axis) {
  call_indexed("npu::_scatter_update_", self, indices, updates, axis);
  return self;
}

Tensor quant_scatter(const Tensor& self, const Tensor& indices, const Tensor& updates, const Tensor& quant_scales,
                     OptionalTensor quant_zero_points, int64_t axis, int64_t quant_axis, String reduce,
                     std::optional<int64_t> dst_type, std::optional<String> round_mode) {
  check_modes("npu_quant_scatter", reduce, round_mode);
  return quant_update({"npu_quant_scatter", "npu::npu_quant_scatter"}, self, indices, updates,
                      {quant_scales, quant_zero_points, axis, quant_axis, dst_type}, false);
}

void write_quant(const Tensor& self, const Tensor& indices, const Tensor& updates, const Tensor& quant_scales,
                 OptionalTensor quant_zero_points, int64_t axis, int64_t quant_axis, std::optional<int64_t> dst_type) {
  quant_update({"npu_quant_scatter_", "npu::npu_quant_scatter_"}, self, indices, updates,
               {quant_scales, quant_zero_points, axis, quant_axis, dst_type}, true);
}

Tensor quant_scatter_(const Tensor& self, const Tensor& indices, const Tensor& updates, const Tensor& quant_scales,
                      OptionalTensor quant_zero_points, int64_t axis, int64_t quant_axis, String reduce,
                      std::optional<int64_t> dst_type, std::optional<String> round_mode) {
  check_modes("npu_quant_scatter_", reduce, round_mode);
  call_indexed("npu::_npu_quant_scatter_", self, indices, updates, quant_scales, quant_zero_points, axis, quant_axis,
               dst_type);
  return self;
}

}  // namespace

// The strings of the public operator have one value each, so the internal one goes without.
#define NPU_QUANT_SCATTER_ARGUMENTS                                                                        \
  "Tensor indices, Tensor updates, Tensor quant_scales, Tensor? quant_zero_points=None, int axis=-2, int " \
  "quant_axis=-1, str reduce='update', int? dst_type=None, str? round_mode='rint')"

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("scatter_update(Tensor self, Tensor indices, Tensor updates, int axis) -> Tensor");
  m.def("scatter_update_(Tensor(a!) self, Tensor indices, Tensor updates, int axis) -> Tensor(a!)");
  m.def("_scatter_update_(Tensor(a!) self, Tensor indices, Tensor updates, int axis) -> ()");
  m.def("npu_quant_scatter(Tensor self, " NPU_QUANT_SCATTER_ARGUMENTS " -> Tensor");
  m.def(
      "_npu_quant_scatter_(Tensor(a!) self, Tensor indices, Tensor updates, Tensor quant_scales, "
      "Tensor? quant_zero_points, int axis, int quant_axis, int? dst_type) -> ()");
  m.def("npu_quant_scatter_(Tensor(a!) self, " NPU_QUANT_SCATTER_ARGUMENTS " -> Tensor(a!)");
}

STABLE_TORCH_LIBRARY_IMPL(npu, CompositeImplicitAutograd, m) {
  m.impl("scatter_update_", TORCH_BOX(&scatter_update_));
  m.impl("npu_quant_scatter_", TORCH_BOX(&quant_scatter_));
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("scatter_update", TORCH_BOX(&scatter_update));
  m.impl("_scatter_update_", TORCH_BOX(&write_update));
  m.impl("npu_quant_scatter", TORCH_BOX(&quant_scatter));
  m.impl("_npu_quant_scatter_", TORCH_BOX(&write_quant));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("scatter_update", TORCH_BOX(&scatter_update));
  m.impl("_scatter_update_", TORCH_BOX(&write_update));
  m.impl("npu_quant_scatter", TORCH_BOX(&quant_scatter));
  m.impl("_npu_quant_scatter_", TORCH_BOX(&write_quant));
}

}  // namespace npu::ops_llm
