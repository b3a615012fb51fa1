/* npu/kernels/strided_tensor.h: makes the views of strided.h from tensors. */
#ifndef NPU_KERNELS_STRIDED_TENSOR_H_
#define NPU_KERNELS_STRIDED_TENSOR_H_

#include "npu/kernels/stable_tensor.h"
#include "npu/kernels/strided.h"

namespace npu::kernels {

/// Sets `view` to the rows of `tensor` as rows_of() describes them; false where they have too many dims.
inline bool list_rows(const Tensor& tensor, Sizes leading, int64_t row_dims, npu_strided* view) {
  view->data = tensor.data_ptr();
  auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t own = static_cast<int64_t>(sizes.size()) - row_dims;  // leading dims that the tensor has itself
  int64_t missing = static_cast<int64_t>(leading.size()) - own;
  for (int64_t d = 0; d < static_cast<int64_t>(leading.size()); ++d) {
    int64_t size = leading[d];
    if (size == 1) continue;
    int64_t stride = d < missing || sizes[d - missing] == 1 ? 0 : strides[d - missing];
    if (view->dims > 0 && view->strides[view->dims - 1] == stride * size) {
      view->sizes[view->dims - 1] *= size;
      view->strides[view->dims - 1] = stride;
      continue;
    }
    if (view->dims == NPU_MAX_DIMS) return false;
    view->sizes[view->dims] = size;
    view->strides[view->dims++] = stride;
  }
  return true;
}

/// The rows of `tensor` seen as if broadcast to leading sizes `leading`; the last `tensor.dim()` - leading dims of the
/// tensor (right-aligned) are the row.  The caller has checked that the sizes fit (equal or 1) and that rows are
/// contiguous.  Neighbouring dims that one stride covers are merged, so a contiguous tensor has one dim.
inline npu_strided rows_of(const Tensor& tensor, Sizes leading, int64_t row_dims) {
  npu_strided view{};
  if (!list_rows(tensor, leading, row_dims, &view)) {
    throw std::runtime_error(text("a tensor of shape ", shape_text(tensor.sizes()),
                                  " whose leading dims do not merge to ", NPU_MAX_DIMS,
                                  " dims; make it contiguous first"));
  }
  return view;
}

/// Whether the last `row_dims` dims of `tensor` lie as in a contiguous tensor.
inline bool rows_are_contiguous(const Tensor& tensor, int64_t row_dims) {
  auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t step = 1;
  for (int64_t d = static_cast<int64_t>(sizes.size()) - 1; row_dims > 0; --d, --row_dims) {
    if (sizes[d] != 1 && strides[d] != step) return false;
    step *= sizes[d];
  }
  return true;
}

/// Whether rows_of() can describe the rows of `tensor`, seen as if broadcast to `leading`.
inline bool rows_can_be_listed(const Tensor& tensor, Sizes leading, int64_t row_dims) {
  npu_strided view{};
  return leading.size() <= NPU_MAX_DIMS || list_rows(tensor, leading, row_dims, &view);
}

/// The tensor itself when rows_of() can describe its rows, the last `row_dims` dims; else a contiguous copy.
inline Tensor with_contiguous_rows(const Tensor& tensor, int64_t row_dims = 1) {
  auto sizes = tensor.sizes();
  Sizes leading(sizes.data(), sizes.size() - static_cast<size_t>(row_dims));
  bool fits = rows_are_contiguous(tensor, row_dims) && rows_can_be_listed(tensor, leading, row_dims);
  return fits ? tensor : as_contiguous(tensor);
}

}  // namespace npu::kernels

#endif  // NPU_KERNELS_STRIDED_TENSOR_H_
