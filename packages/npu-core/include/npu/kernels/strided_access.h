/* npu/kernels/strided_access.h: strided tensors as ops read and write them without a copy. */
#ifndef NPU_KERNELS_STRIDED_ACCESS_H_
#define NPU_KERNELS_STRIDED_ACCESS_H_

#include "npu/kernels/launch.h"
#include "npu/kernels/strided_tensor.h"

namespace npu::kernels {

/// Bytes from the first element to the end of the last one.
inline size_t span_of(const Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t last = 0;
  for (size_t d = 0; d < sizes.size(); ++d) last += (sizes[d] - 1) * strides[d];
  return static_cast<size_t>(last + 1) * tensor.element_size();
}

/// As reads() and writes() of launch.h, for tensors that need not be contiguous: everything between their ends.
inline npu_access reads_span(const Tensor& tensor) { return {tensor.data_ptr(), span_of(tensor), 0, 0}; }
inline npu_access writes_span(const Tensor& tensor) { return {tensor.data_ptr(), span_of(tensor), 1, 0}; }

/// The tensor itself when its rows (the last dim) are contiguous, else a contiguous copy.
inline Tensor with_contiguous_rows(const Tensor& tensor) {
  return rows_are_contiguous(tensor, 1) ? tensor : as_contiguous(tensor);
}

/// Raises when elements that are written share memory: a dim of an expanded tensor.
inline void check_writable(const char* op, const char* argument, const Tensor& tensor) {
  auto sizes = tensor.sizes(), strides = tensor.strides();
  for (size_t d = 0; d < sizes.size(); ++d) {
    NPU_CHECK_ARG(sizes[d] <= 1 || strides[d] != 0, op, argument, "it is written, but its dim ", d,
                  " is expanded (stride 0), so that elements share memory; clone it first");
  }
}

}  // namespace npu::kernels

#endif  // NPU_KERNELS_STRIDED_ACCESS_H_
