/* npu/kernels/dense_tensor.h: tensors whose elements fill one block of memory, in whatever order of dims.
 *
 * An elementwise op walks such a block from end to end: a transposed or channels-last input needs no copy, and the
 * result gets the strides of the input, as results of torch's elementwise ops do (the fake kernel is torch.empty_like).
 */
#ifndef NPU_KERNELS_DENSE_TENSOR_H_
#define NPU_KERNELS_DENSE_TENSOR_H_

#include "npu/kernels/stable_tensor.h"

namespace npu::kernels {

/// Whether the elements lie without gaps and overlaps.
inline bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) return true;
  auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t step = 1, left = 0;
  for (int64_t size : sizes) left += size > 1;
  for (; left > 0; --left) {
    size_t d = 0;
    while (d < sizes.size() && !(sizes[d] > 1 && strides[d] == step)) ++d;
    if (d == sizes.size()) return false;
    step *= sizes[d];
  }
  return true;
}

/// The tensor itself when it is dense, else a dense copy made on the current stream, with the strides of empty_like.
inline Tensor as_dense(const Tensor& tensor) { return is_dense(tensor) ? tensor : torch::stable::clone(tensor); }

/// An uninitialised tensor with the sizes and strides of a dense one.
inline Tensor allocate_like(const Tensor& dense, npu_dtype dtype, const Device& device) {
  AtenTensorHandle handle = nullptr;
  auto sizes = dense.sizes(), strides = dense.strides();
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), dtype, device.type,
                                                         device.is_cpu() ? 0 : device.index, &handle));
  return Tensor(handle);
}

/// `tensor` with its elements in the order of `dense`, which has the same sizes; a copy where the strides differ.
inline Tensor in_layout_of(const Tensor& dense, const Tensor& tensor) {
  if (same_sizes(dense.strides(), tensor.strides()) || (dense.is_contiguous() && tensor.is_contiguous())) return tensor;
  Tensor copy = allocate_like(dense, dtype_of(tensor), device_of(tensor));
  torch::stable::copy_(copy, tensor);
  return copy;
}

}  // namespace npu::kernels

#endif  // NPU_KERNELS_DENSE_TENSOR_H_
