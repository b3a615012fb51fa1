#include "empty.h"

#include <ATen/Context.h>
#include <ATen/native/TensorFactories.h>
#include <c10/core/StorageImpl.h>

#include "launch_op.h"
#include "runtime/caching_allocator.h"

namespace npu::aten {
namespace {

constexpr c10::DispatchKeySet kNpuKeys(c10::DispatchKey::PrivateUse1);

// torch.use_deterministic_algorithms(True) asks empty() to be filled, so that reading it is reproducible.
void fill_if_deterministic(at::Tensor& t) {
  if (C10_UNLIKELY(at::globalContext().deterministicAlgorithms() &&
                   at::globalContext().deterministicFillUninitializedMemory())) {
    at::native::fill_empty_deterministic_(t);
  }
}

at::Tensor tensor_of(c10::DataPtr data, size_t bytes, at::ScalarType dtype) {
  auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes, std::move(data),
                                                       &caching_allocator(), /*resizable=*/true);
  return at::detail::make_tensor<c10::TensorImpl>(c10::Storage(std::move(storage)), kNpuKeys,
                                                  c10::scalarTypeToTypeMeta(dtype));
}

}  // namespace

at::Tensor empty_npu(at::IntArrayRef sizes, at::ScalarType dtype, int device, std::optional<at::MemoryFormat> format) {
  at::detail::check_size_nonnegative(sizes);
  const size_t bytes = at::detail::computeStorageNbytesContiguous(sizes, c10::elementSize(dtype));
  auto t = tensor_of(caching_allocator().allocate_on(bytes, current_stream(device)), bytes, dtype);
  auto* impl = t.unsafeGetTensorImpl();
  if (sizes.size() != 1 || sizes[0] != 0) impl->generic_set_sizes_contiguous(sizes);
  if (C10_UNLIKELY(format.has_value() && *format != at::MemoryFormat::Contiguous)) impl->empty_tensor_restride(*format);
  fill_if_deterministic(t);
  return t;
}

at::Tensor empty_strided_npu(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype, int device) {
  at::detail::check_size_nonnegative(sizes);
  const size_t bytes = at::detail::computeStorageNbytes(sizes, strides, c10::elementSize(dtype));
  auto t = tensor_of(caching_allocator().allocate_on(bytes, current_stream(device)), bytes, dtype);
  t.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
  fill_if_deterministic(t);
  return t;
}

void resize_storage(c10::StorageImpl* storage, size_t bytes, int device) {
  if (bytes <= storage->nbytes()) return;
  TORCH_CHECK(storage->resizable(), "Trying to resize storage that is not resizable");
  Stream* stream = current_stream(device);
  auto fresh = caching_allocator().allocate_on(bytes, stream);
  if (storage->nbytes() != 0) {
    copy_memory(stream, fresh.get(), storage->data(), storage->nbytes());
  }
  storage->set_data_ptr_noswap(std::move(fresh));
  storage->set_nbytes(bytes);
}

}  // namespace npu::aten
