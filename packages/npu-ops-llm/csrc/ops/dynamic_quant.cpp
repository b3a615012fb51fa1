// npu_dynamic_quant and npu_dynamic_quant_asymmetric: schemas, checks and tasks.  Fake:
// src/npu_ops_llm/dynamic_quant.py.
#include <algorithm>
#include <tuple>
#include <vector>

#include "../kernels/dynamic_quant.h"
#include "npu/kernels/dtype_argument.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/row_group_errors.h"
#include "npu/kernels/strided_tensor.h"
#include "npu/kernels/strings.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<DynamicQuantKernels> kTables = {{
    &dynamic_quant_kernels_base,
#if defined(__x86_64__)
    &dynamic_quant_kernels_avx2,
    &dynamic_quant_kernels_avx512,
    &dynamic_quant_kernels_avx512_bf16,
#endif
}};

enum class Mode { per_token, per_channel, per_tensor };

Mode mode_of(const char* op, const String& name) {
  if (name == "pertoken") return Mode::per_token;
  if (name == "perchannel") return Mode::per_channel;
  NPU_CHECK_ARG(name == "pertensor", op, "quant_mode", "expected \"pertoken\", \"perchannel\" or \"pertensor\", got \"",
                name.value, "\"");
  return Mode::per_tensor;
}

struct Task {
  const DynamicQuantKernels* kernels;
  DynamicQuant work;
  int64_t matrices;  // per channel
  Mode mode;
};

npu_status run(void* payload, npu_error* error) {
  const auto& task = *static_cast<const Task*>(payload);
  const DynamicQuant& work = task.work;
  npu_status fits = check_row_groups(work.groups, work.rows, error);
  if (fits != NPU_OK) return fits;
  if (task.mode == Mode::per_channel) {
    int64_t tiles = (work.columns + NPU_CHANNELS_PER_TILE - 1) / NPU_CHANNELS_PER_TILE;
    auto body = [&](int64_t begin, int64_t end) { task.kernels->per_channel(&work, begin, end); };
    return parallel_for(task.matrices * tiles, grain_for(work.length * NPU_CHANNELS_PER_TILE), body, error);
  }
  if (task.mode == Mode::per_token) {
    auto body = [&](int64_t begin, int64_t end) { task.kernels->per_token(&work, begin, end); };
    return parallel_for(work.rows, grain_for(work.columns), body, error);
  }
  auto ranges = [&](int64_t begin, int64_t end) { task.kernels->row_ranges(&work, begin, end); };
  npu_status status = parallel_for(work.rows, grain_for(work.columns), ranges, error);
  if (status != NPU_OK) return status;
  task.kernels->scale_of_ranges(&work);
  auto body = [&](int64_t begin, int64_t end) { task.kernels->quantize_by_scale(&work, begin, end); };
  return parallel_for(work.rows, grain_for(work.columns), body, error);
}

/// (y, scale, offset); offset only when `asymmetric`.
std::tuple<Tensor, Tensor, OptionalTensor> quantize(const char* op, const char* task_name, bool asymmetric,
                                                    const Tensor& input, const OptionalTensor& smooth_scales,
                                                    const OptionalTensor& group_index, std::optional<int64_t> dst_type,
                                                    const String& quant_mode) {
  Device device = device_of(input);
  check_same_device(op, device, "smooth_scales", smooth_scales);
  check_same_device(op, device, "group_index", group_index);
  npu_dtype dtype = dtype_of(input);
  check_dtype(op, "input", input, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  npu_dtype quantized = asymmetric ? dtype_argument(op, "dst_type", dst_type, NPU_INT8, {NPU_INT8, NPU_QUINT4X2})
                                   : dtype_argument(op, "dst_type", dst_type, NPU_INT8,
                                                    {NPU_INT8, NPU_QUINT4X2, NPU_FLOAT8_E4M3FN, NPU_FLOAT8_E5M2});
  Mode mode = mode_of(op, quant_mode);
  Sizes sizes = input.sizes();
  size_t dims = sizes.size();
  NPU_CHECK_ARG(dims > 1, op, "input", "Input shape dim should be greater than 1, got shape ", shape_text(sizes));
  int64_t columns = sizes[dims - 1], length = sizes[dims - 2];
  NPU_CHECK_ARG(quantized != NPU_QUINT4X2 || columns % 8 == 0, op, "input",
                "Input shape last dim must be divded by 8 when int4 quantization, got shape ", shape_text(sizes));

  DynamicQuant work{};
  work.rows = count_of(Sizes(sizes.data(), dims - 1));
  work.columns = columns;
  work.length = length;
  work.dtype = dtype;
  work.quantized_dtype = quantized;
  OptionalTensor smooth, ends;
  if (smooth_scales.has_value()) {
    check_dtype(op, "smooth_scales", *smooth_scales, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
    if (group_index.has_value()) {
      NPU_CHECK_ARG(mode != Mode::per_channel, op, "group_index", "expected None with quant_mode \"perchannel\"");
      check_dtype(op, "group_index", *group_index, {NPU_INT32, NPU_INT64});
      Sizes index_sizes = group_index->sizes();
      NPU_CHECK_ARG(index_sizes.size() == 1 && (index_sizes[0] > 0 || work.rows == 0), op, "group_index",
                    "expected the row end of each group, shape [groups], got shape ", shape_text(index_sizes));
      int64_t expected[] = {index_sizes[0], columns};
      check_sizes(op, "smooth_scales", *smooth_scales, Sizes(expected, 2), "(groups, last dim of input)");
      ends = as_contiguous(*group_index);
      work.groups = {ends->data_ptr(), index_sizes[0], dtype_of(*ends)};
    } else {
      int64_t expected[] = {mode == Mode::per_channel ? length : columns};
      check_sizes(op, "smooth_scales", *smooth_scales, Sizes(expected, 1),
                  mode == Mode::per_channel ? "(second last dim of input)" : "(last dim of input)");
    }
    smooth = as_contiguous(*smooth_scales);
    if (dtype_of(*smooth) != dtype && dtype_of(*smooth) != NPU_FLOAT32) {
      smooth = torch::stable::to(*smooth, torch::headeronly::ScalarType::Float);
    }
    work.smooth = smooth->data_ptr();
    work.smooth_dtype = dtype_of(*smooth);
  }

  Tensor x = mode == Mode::per_channel ? as_contiguous(input) : with_contiguous_rows(input);
  work.input = rows_of(x, Sizes(sizes.data(), dims - 1), 1);
  std::vector<int64_t> y_sizes(sizes.begin(), sizes.end());
  if (quantized == NPU_QUINT4X2) y_sizes.back() /= 8;
  Tensor y = allocate(Sizes(y_sizes.data(), dims), quantized == NPU_QUINT4X2 ? NPU_INT32 : quantized, device);
  std::vector<int64_t> scale_sizes(sizes.begin(), sizes.end() - 1);
  if (mode == Mode::per_channel) scale_sizes.back() = columns;
  if (mode == Mode::per_tensor) scale_sizes.assign(1, 1);
  Sizes scale_shape(scale_sizes.data(), scale_sizes.size());
  Tensor scale = allocate(scale_shape, NPU_FLOAT32, device);
  OptionalTensor offset, ranges;
  work.y = y.data_ptr();
  work.scale = static_cast<float*>(scale.data_ptr());
  if (asymmetric) {
    offset = allocate(scale_shape, NPU_FLOAT32, device);
    work.offset = static_cast<float*>(offset->data_ptr());
  }
  if (mode == Mode::per_tensor) {
    int64_t range_sizes[] = {std::max<int64_t>(work.rows, 1), 2};
    ranges = allocate(Sizes(range_sizes, 2), NPU_FLOAT32, device);
    work.ranges = static_cast<float*>(ranges->data_ptr());
  }
  if (scale.numel() > 0) {
    auto writes_or_nothing = [](const OptionalTensor& one) {
      return one.has_value() ? writes(*one) : npu_access{nullptr, 0, 0, 0};
    };
    int64_t matrices = count_of(Sizes(sizes.data(), dims - 2));
    launch(device, task_name, run, Task{&kTables.active(), work, matrices, mode},
           {reads(x), reads(smooth), reads(ends), writes(y), writes(scale), writes_or_nothing(offset),
            writes_or_nothing(ranges)});
  }
  return {y, scale, offset};
}

std::tuple<Tensor, Tensor> dynamic_quant(const Tensor& input, const OptionalTensor& smooth_scales,
                                         const OptionalTensor& group_index, std::optional<int64_t> dst_type,
                                         String quant_mode, double) {
  auto [y, scale, offset] = quantize("npu_dynamic_quant", "npu::npu_dynamic_quant", false, input, smooth_scales,
                                     group_index, dst_type, quant_mode);
  return {y, scale};
}

std::tuple<Tensor, Tensor, Tensor> dynamic_quant_asymmetric(const Tensor& input, const OptionalTensor& smooth_scales,
                                                            const OptionalTensor& group_index,
                                                            std::optional<int64_t> dst_type, String quant_mode,
                                                            double) {
  auto [y, scale, offset] = quantize("npu_dynamic_quant_asymmetric", "npu::npu_dynamic_quant_asymmetric", true, input,
                                     smooth_scales, group_index, dst_type, quant_mode);
  return {y, scale, *offset};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def(
      "npu_dynamic_quant(Tensor input, *, Tensor? smooth_scales=None, Tensor? group_index=None, int? dst_type=None, "
      "str quant_mode=\"pertoken\", float dst_type_max=0.0) -> (Tensor, Tensor)");
  m.def(
      "npu_dynamic_quant_asymmetric(Tensor input, *, Tensor? smooth_scales=None, Tensor? group_index=None, "
      "int? dst_type=None, str quant_mode=\"pertoken\", float dst_type_max=0.0) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_dynamic_quant", TORCH_BOX(&dynamic_quant));
  m.impl("npu_dynamic_quant_asymmetric", TORCH_BOX(&dynamic_quant_asymmetric));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_dynamic_quant", TORCH_BOX(&dynamic_quant));
  m.impl("npu_dynamic_quant_asymmetric", TORCH_BOX(&dynamic_quant_asymmetric));
}

}  // namespace npu::ops_llm
