/* npu/kernels/aliasing.h: the memory that tensors of any strides span, and whether they share some. */
#ifndef NPU_KERNELS_ALIASING_H_
#define NPU_KERNELS_ALIASING_H_

#include "npu/kernels/launch.h"
#include "npu/kernels/stable_tensor.h"

namespace npu::kernels {

/// From the first to the last byte of the tensor, gaps included.
inline npu_access span_of(const Tensor& tensor, bool is_write) {
  auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t last = 0;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return {tensor.data_ptr(), 0, is_write, 0};
    last += (sizes[d] - 1) * strides[d];
  }
  return {tensor.data_ptr(), static_cast<size_t>((last + 1) * static_cast<int64_t>(tensor.element_size())), is_write,
          0};
}

/// As reads() and writes() of launch.h, for tensors that need not be contiguous.
inline npu_access reads_span(const Tensor& tensor) { return span_of(tensor, false); }
inline npu_access writes_span(const Tensor& tensor) { return span_of(tensor, true); }

/// Whether the extents of two tensors meet; they may still have no element in common.
inline bool extents_meet(const Tensor& a, const Tensor& b) {
  npu_access one = span_of(a, false), other = span_of(b, false);
  auto begin = reinterpret_cast<uintptr_t>(one.address), other_begin = reinterpret_cast<uintptr_t>(other.address);
  return begin < other_begin + other.bytes && other_begin < begin + one.bytes;
}

/// `source` itself, or a copy when an op is about to write memory of it through `target`.
inline Tensor apart_from(const Tensor& source, const Tensor& target) {
  return extents_meet(source, target) ? torch::stable::clone(source) : source;
}

/// Raises when several elements of a tensor that is written share one place, as in an expanded tensor.
inline void check_writable(const char* op, const char* argument, const Tensor& tensor) {
  auto sizes = tensor.sizes(), strides = tensor.strides();
  for (size_t d = 0; d < sizes.size(); ++d) {
    NPU_CHECK_ARG(sizes[d] <= 1 || strides[d] != 0, op, argument, "more than one element refers to a single memory ",
                  "location (dim ", d, " is expanded), so it cannot be written in place; clone it first");
  }
}

}  // namespace npu::kernels

#endif  // NPU_KERNELS_ALIASING_H_
