/* The work of npu_iou as flat arguments, and the table of its kernels. */
#ifndef NPU_OPS_VISION_KERNELS_IOU_H_
#define NPU_OPS_VISION_KERNELS_IOU_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"

/* `count` boxes (x1, y1, x2, y2) in contiguous rows, and the room where they are laid out for vectors: five planes of
 * `count` floats, x1, y1, x2, y2 and the area with the op's epsilon on both sides. */
struct IouBoxes {
  const void* rows;
  float* planes;
  int64_t count;
  npu_dtype dtype;
};

/* out[j, i] = overlap of gt j and box i.  The output is worked on in tiles of kIouTileColumns columns whose planes stay
 * in the first-level cache; part p of the work is row p % gts.count of tile p / gts.count. */
enum { kIouTileColumns = 1024 };

struct IouWork {
  IouBoxes boxes, gts;
  void* out;            /* boxes.dtype, gts.count x boxes.count */
  int32_t over_gt_area; /* divide by the area of the gt (iof) instead of the union (iou) */
};

struct IouKernels {
  void (*lay_out)(const IouBoxes* boxes, int64_t begin, int64_t end);
  void (*overlap)(const IouWork* work, int64_t part_begin, int64_t part_end);
};

extern const IouKernels iou_kernels_base;
#if defined(__x86_64__)
extern const IouKernels iou_kernels_avx2;
extern const IouKernels iou_kernels_avx512;
#endif

#endif /* NPU_OPS_VISION_KERNELS_IOU_H_ */
