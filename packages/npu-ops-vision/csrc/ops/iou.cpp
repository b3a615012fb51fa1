// npu_iou: schema, checks and task.  Fake: src/npu_ops_vision/iou.py.
#include "../kernels/iou.h"

#include <atomic>

#include "npu/kernels/deprecation.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/stable_tensor.h"

namespace npu::ops_vision {
namespace {

using namespace npu::kernels;

const KernelTables<IouKernels> kTables = {{
    &iou_kernels_base,
#if defined(__x86_64__)
    &iou_kernels_avx2,
    &iou_kernels_avx512,
#endif
}};

constexpr const char* kOp = "npu_iou";

void check_boxes(const char* argument, const Tensor& boxes) {
  Sizes sizes = boxes.sizes();
  NPU_CHECK_ARG(sizes.size() == 2 && sizes[1] == 4, kOp, argument,
                "expected shape [n, 4] with rows x1, y1, x2, y2, got ", shape_text(sizes));
  npu_dtype dtype = dtype_of(boxes);
  NPU_CHECK_ARG(dtype == NPU_FLOAT16 || dtype == NPU_BFLOAT16 || dtype == NPU_FLOAT32 || dtype == NPU_FLOAT64, kOp,
                argument, "expected dtype float16, bfloat16, float32 or float64, got ", npu_dtype_name(dtype),
                "; convert it first");
}

struct IouTask {
  const IouKernels* kernels;
  IouWork work;
};

npu_status run_iou(void* payload, npu_error* error) {
  const auto& task = *static_cast<const IouTask*>(payload);
  const IouWork& work = task.work;
  for (const IouBoxes* boxes : {&work.boxes, &work.gts}) {
    auto lay_out = [&](int64_t begin, int64_t end) { task.kernels->lay_out(boxes, begin, end); };
    npu_status status = parallel_for(boxes->count, grain_for(8), lay_out, error);
    if (status != NPU_OK) return status;
  }
  int64_t tiles = (work.boxes.count + kIouTileColumns - 1) / kIouTileColumns;
  int64_t columns = work.boxes.count < kIouTileColumns ? work.boxes.count : kIouTileColumns;
  auto parts = [&](int64_t begin, int64_t end) { task.kernels->overlap(&work, begin, end); };
  return parallel_for(tiles * work.gts.count, grain_for(columns), parts, error);
}

Tensor iou(const Tensor& bboxes, const Tensor& gtboxes, int64_t mode) {
  static std::atomic<bool> warned{false};
  warn_deprecated_once(warned, kOp);
  Device device = device_of(bboxes);
  check_same_device(kOp, device, "gtboxes", gtboxes);
  check_boxes("bboxes", bboxes);
  check_boxes("gtboxes", gtboxes);
  int64_t columns = bboxes.size(0), rows = gtboxes.size(0);
  int64_t sizes[] = {rows, columns};
  Tensor out = allocate(Sizes(sizes, 2), dtype_of(bboxes), device);
  if (rows == 0 || columns == 0) return out;
  Tensor boxes = as_contiguous(bboxes), gts = as_contiguous(gtboxes);
  int64_t room = 5 * (columns + rows);
  Tensor planes = allocate(Sizes(&room, 1), NPU_FLOAT32, device);
  float* box_planes = static_cast<float*>(planes.data_ptr());
  IouTask task{&kTables.active(),
               {{boxes.data_ptr(), box_planes, columns, dtype_of(bboxes)},
                {gts.data_ptr(), box_planes + 5 * columns, rows, dtype_of(gtboxes)},
                out.data_ptr(),
                mode == 1}};
  launch(device, "npu::npu_iou", run_iou, task, {reads(boxes), reads(gts), writes(planes), writes(out)});
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) { m.def("npu_iou(Tensor bboxes, Tensor gtboxes, int mode=0) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) { m.impl("npu_iou", TORCH_BOX(&iou)); }

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) { m.impl("npu_iou", TORCH_BOX(&iou)); }

}  // namespace npu::ops_vision
