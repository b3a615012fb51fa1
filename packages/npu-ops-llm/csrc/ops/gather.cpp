// npu_gather_sparse_index and its gradient: schemas, checks and tasks.  Fake and autograd: src/npu_ops_llm/gather.py.
#include "../kernels/gather.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <vector>

#include "npu/kernels/aliasing.h"
#include "npu/kernels/box.h"
#include "npu/kernels/indexed_writes.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/stable_tensor.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<GatherKernels> kTables = {{
    &gather_kernels_base,
#if defined(__x86_64__)
    &gather_kernels_avx2,
    &gather_kernels_avx512,
    &gather_kernels_avx512_bf16,
#endif
}};

npu_status describe_bad_index(const Indices& indices, int64_t i, int64_t rows, npu_error* error) {
  std::snprintf(error->message, sizeof(error->message),
                "argument index: index %lld in element [%lld] (of the flattened index) is out of range: expected 0 <= "
                "index < %lld, the size on dim 0",
                (long long)indices[i], (long long)i, (long long)rows);
  return NPU_ERROR_INDEX;
}

struct ForwardTask {
  Box row;
  const char* input;
  char* out;
  Indices indices;
  int64_t count, rows, row_stride;  // bytes
};

npu_status run_forward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const ForwardTask*>(payload);
  const int64_t bytes = task.row.bytes(), units = task.row.units();
  std::atomic<int64_t> first_bad{task.count};
  auto body = [&](int64_t begin, int64_t end) {
    // Rows are anywhere in memory: ask for the first lines of those that come soon.
    constexpr int64_t kLines = 4;
    const int64_t ahead = std::clamp<int64_t>(4096 / bytes, 4, 32);
    const bool aligned = (reinterpret_cast<uintptr_t>(task.input) | task.row_stride) % 64 == 0;
    const int64_t touched = aligned ? (bytes + 63) / 64 : (bytes + 62) / 64 + 1;  // no line of the row after
    const int64_t lines = std::min<int64_t>(task.row.dims == 0 ? touched : 0, kLines);
    const int64_t last_item = (end - 1) / units;
    for (int64_t i = begin / units; begin < end; ++i) {
      int64_t first = begin - i * units, last = std::min(units, end - i * units);
      begin = (i + 1) * units;
      int64_t index = task.indices[i];
      if (index < 0 || index >= task.rows) {
        int64_t known = first_bad.load(std::memory_order_relaxed);
        while (i < known && !first_bad.compare_exchange_weak(known, i, std::memory_order_relaxed)) {
        }
        break;
      }
      if (lines > 0 && i + ahead <= last_item) {
        const char* next = task.input + task.indices[i + ahead] * task.row_stride;  // an address, never read
        for (int64_t line = 0; line < lines; ++line) __builtin_prefetch(next + line * 64);
      }
      copy_box(task.row, task.out + i * bytes, task.input + index * task.row_stride, first, last);
    }
    npu_stream_fence();
  };
  int64_t grain = std::max<int64_t>(kBytesPerThread * units / std::max<int64_t>(bytes, 1), 1);
  npu_status status = parallel_for(task.count * units, grain, body, error);
  if (status != NPU_OK) return status;
  if (first_bad.load() < task.count) return describe_bad_index(task.indices, first_bad.load(), task.rows, error);
  return NPU_OK;
}

void check_index(const char* op, const Device& device, const Tensor& index) {
  check_same_device(op, device, "index", index);
  check_dtype(op, "index", index, {NPU_INT32, NPU_INT64});
}

Tensor gather(const Tensor& input, const Tensor& index) {
  constexpr const char* kOp = "npu_gather_sparse_index";
  Device device = device_of(input);
  check_index(kOp, device, index);
  Sizes sizes = input.sizes(), index_sizes = index.sizes();
  NPU_CHECK_ARG(input.dim() + index.dim() - 1 <= 8, kOp, "index", "the dims of input plus those of index, less one, ",
                "must not greater than 8; input has shape ", shape_text(sizes), ", index has shape ",
                shape_text(index_sizes));
  if (input.dim() == 0) return torch::stable::clone(input);
  std::vector<int64_t> out_sizes(index_sizes.begin(), index_sizes.end());
  out_sizes.insert(out_sizes.end(), sizes.begin() + 1, sizes.end());
  Tensor out = allocate(Sizes(out_sizes.data(), out_sizes.size()), dtype_of(input), device);
  if (out.numel() == 0) return out;
  Tensor indices = as_contiguous(index);
  int64_t size = static_cast<int64_t>(input.element_size()), step = size;
  auto strides = input.strides();
  ForwardTask task{};
  task.row = box_of_run(size);
  for (int64_t d = input.dim() - 1; d >= 1; --d) {
    add_dim(task.row, sizes[d], step, strides[d] * size);
    step *= sizes[d];
  }
  stream_if_large(task.row, bytes_of(out));
  task.input = static_cast<const char*>(input.data_ptr());
  task.out = static_cast<char*>(out.data_ptr());
  task.indices = {indices.data_ptr(), dtype_of(indices) == NPU_INT64};
  task.count = indices.numel();
  task.rows = sizes[0];
  task.row_stride = strides[0] * size;
  launch(device, "npu::npu_gather_sparse_index", run_forward, task, {reads_span(input), reads(indices), writes(out)});
  return out;
}

struct BackwardTask {
  const GatherKernels* kernels;
  GatherBackward work;
  Indices indices;
  int64_t* offsets;
  int64_t* order;
  int64_t count;
};

npu_status run_backward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const BackwardTask*>(payload);
  const GatherBackward& work = task.work;
  const int64_t rows = work.rows, columns = work.columns;
  // A counting sort: it keeps the order of equal indices, so sums do not depend on the number of threads.
  int64_t* ends = task.offsets + 1;
  std::fill(task.offsets, ends + rows, int64_t{0});
  for (int64_t i = 0; i < task.count; ++i) {
    int64_t index = task.indices[i];
    if (index < 0 || index >= rows) return describe_bad_index(task.indices, i, rows, error);
    ++ends[index];
  }
  int64_t most = 0, total = 0;
  for (int64_t row = 0; row < rows; ++row) {
    most = std::max(most, ends[row]);
    total += ends[row];
    ends[row] = total - ends[row];  // the first place of the row for now
  }
  for (int64_t i = 0; i < task.count; ++i) {
    int64_t index = task.indices[i];
    // Only another stream that overwrites the indices can make them differ from the first pass.
    if (index < 0 || index >= rows || ends[index] >= task.count)
      return describe_bad_index(task.indices, i, rows, error);
    task.order[ends[index]++] = i;
  }
  // Now offsets[row] is the first place of the row: ends[row] has moved to its end.
  const int64_t items = rows + task.count;  // a row costs its zeros or its sum, so about 1 + its indices
  if (most > items / 16 && columns >= 128) {
    // Few rows have most of the work: split their columns, whole cache lines.
    auto empty_rows = [&](int64_t begin, int64_t end) { task.kernels->clear_rows(&work, begin, end); };
    npu_status status = parallel_for(rows, grain_for(columns), empty_rows, error);
    if (status != NPU_OK) return status;
    constexpr int64_t kColumns = 64;
    int64_t parts = (columns + kColumns - 1) / kColumns;
    auto some_columns = [&](int64_t begin, int64_t end) {
      task.kernels->sum_rows(&work, 0, rows, begin * kColumns, std::min(end * kColumns, columns));
    };
    return parallel_for(parts, grain_for(items * kColumns), some_columns, error);
  }
  // Row r starts at item r + offsets[r].
  auto row_of = [&](int64_t item) {
    int64_t low = 0, high = rows;
    while (low < high) {
      int64_t middle = (low + high) / 2;
      if (middle + task.offsets[middle] < item) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  auto some_rows = [&](int64_t begin, int64_t end) {
    int64_t row_begin = row_of(begin), row_end = row_of(end);
    task.kernels->clear_rows(&work, row_begin, row_end);
    task.kernels->sum_rows(&work, row_begin, row_end, 0, columns);
  };
  return parallel_for(items, grain_for(columns), some_rows, error);
}

/// The dtype of one column; a complex element is two.  -1 for what cannot be summed here.
npu_dtype column_dtype(npu_dtype dtype, int64_t& columns) {
  switch (dtype) {
    case 8:
    case 9:
    case 10:
      columns *= 2;
      return dtype == 8 ? NPU_FLOAT16 : dtype == 9 ? NPU_FLOAT32 : NPU_FLOAT64;
    case NPU_UINT8:
    case NPU_INT8:
    case NPU_INT16:
    case NPU_INT32:
    case NPU_INT64:
    case NPU_BOOL:
    case NPU_FLOAT16:
    case NPU_BFLOAT16:
    case NPU_FLOAT32:
    case NPU_FLOAT64:
      return dtype;
    default:
      return -1;
  }
}

Tensor gather_backward(const Tensor& grad, std::vector<int64_t> self_sizes, const Tensor& index) {
  constexpr const char* kOp = "npu_gather_sparse_index_backward";
  Device device = device_of(grad);
  check_index(kOp, device, index);
  Sizes sizes(self_sizes.data(), self_sizes.size()), index_sizes = index.sizes();
  std::vector<int64_t> expected;
  if (!self_sizes.empty()) {
    expected.assign(index_sizes.begin(), index_sizes.end());
    expected.insert(expected.end(), sizes.begin() + 1, sizes.end());
  }
  check_sizes(kOp, "grad", grad, Sizes(expected.data(), expected.size()),
              "(those of index, then self_sizes without the first)");
  if (self_sizes.empty()) return torch::stable::clone(grad);
  BackwardTask task{};
  task.count = index.numel();
  task.work.rows = sizes[0];
  task.work.columns = 1;
  for (size_t d = 1; d < sizes.size(); ++d) task.work.columns *= sizes[d];
  task.work.dtype = column_dtype(dtype_of(grad), task.work.columns);
  NPU_CHECK_ARG(task.work.dtype >= 0, kOp, "grad", "cannot add values of dtype ", npu_dtype_name(dtype_of(grad)),
                "; convert it first");
  Tensor out = allocate(sizes, dtype_of(grad), device);
  if (out.numel() == 0 && (task.count == 0 || task.work.columns == 0)) return out;
  Tensor upstream = as_contiguous(grad), indices = as_contiguous(index);
  int64_t scratch_size = sizes[0] + 1 + task.count;
  Tensor scratch = allocate(Sizes(&scratch_size, 1), NPU_INT64, device);
  task.kernels = &kTables.active();
  task.offsets = static_cast<int64_t*>(scratch.data_ptr());
  task.order = task.offsets + sizes[0] + 1;
  task.work.grad = upstream.data_ptr();
  task.work.out = out.data_ptr();
  task.work.offsets = task.offsets;
  task.work.order = task.order;
  task.indices = {indices.data_ptr(), dtype_of(indices) == NPU_INT64};
  launch(device, "npu::npu_gather_sparse_index_backward", run_backward, task,
         {reads(upstream), reads(indices), writes(scratch), writes(out)});
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("npu_gather_sparse_index(Tensor input, Tensor index) -> Tensor");
  m.def("npu_gather_sparse_index_backward(Tensor grad, SymInt[] self_sizes, Tensor index) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_gather_sparse_index", TORCH_BOX(&gather));
  m.impl("npu_gather_sparse_index_backward", TORCH_BOX(&gather_backward));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_gather_sparse_index", TORCH_BOX(&gather));
  m.impl("npu_gather_sparse_index_backward", TORCH_BOX(&gather_backward));
}

}  // namespace npu::ops_llm
