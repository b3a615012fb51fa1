// Sparse tensors on npu: torch's own sparse tensor classes over npu indices and values.  What reads or makes the parts
// is registered here; every operator runs on the CPU through the fallback, which maps the parts.
#include "sparse.h"

#include <ATen/SparseCsrTensorImpl.h>
#include <ATen/SparseTensorImpl.h>
#include <ATen/ops/_coalesced_native.h>
#include <ATen/ops/_indices_native.h>
#include <ATen/ops/_nnz_native.h>
#include <ATen/ops/_sparse_compressed_tensor_with_dims_native.h>
#include <ATen/ops/_sparse_coo_tensor_with_dims_and_tensors_native.h>
#include <ATen/ops/_sparse_coo_tensor_with_dims_native.h>
#include <ATen/ops/_values_native.h>
#include <ATen/ops/ccol_indices_native.h>
#include <ATen/ops/col_indices_native.h>
#include <ATen/ops/crow_indices_native.h>
#include <ATen/ops/dense_dim_native.h>
#include <ATen/ops/empty_native.h>
#include <ATen/ops/indices_native.h>
#include <ATen/ops/is_coalesced_native.h>
#include <ATen/ops/row_indices_native.h>
#include <ATen/ops/sparse_dim_native.h>
#include <ATen/ops/values_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "cpu_kernels.h"
#include "empty.h"
#include "fallback.h"

namespace npu::aten {
namespace {

at::SparseTensorImpl* coo(const at::Tensor& t) { return static_cast<at::SparseTensorImpl*>(t.unsafeGetTensorImpl()); }
at::SparseCsrTensorImpl* compressed(const at::Tensor& t) {
  return static_cast<at::SparseCsrTensorImpl*>(t.unsafeGetTensorImpl());
}

void assign_coo(const at::Tensor& to, const at::Tensor& from, const MapPart& map) {
  auto *target = coo(to), *source = coo(from);
  target->raw_resize_(source->sparse_dim(), source->dense_dim(), source->sizes());
  target->set_indices_and_values_unsafe(map(source->indices()), map(source->values()));
  target->set_coalesced(source->coalesced());
}

void assign_compressed(const at::Tensor& to, const at::Tensor& from, const MapPart& map) {
  auto *target = compressed(to), *source = compressed(from);
  target->set_member_tensors(map(source->compressed_indices()), map(source->plain_indices()), map(source->values()),
                             source->sizes());
}

// copy_ between sparse tensors of any devices: the parts are copied, each in the order of its stream.
at::Tensor& copy_sparse(at::Tensor& self, const at::Tensor& src, bool non_blocking) {
  TORCH_CHECK(self.layout() == src.layout(), "copy_: a tensor of layout ", src.layout(),
              " cannot be copied into one of ", self.layout(), " on npu; convert it first (to_dense, to_sparse)");
  if (self.is_same(src)) return self;
  const bool converts = self.scalar_type() != src.scalar_type();
  const at::Tensor converted = converts ? src.to(self.scalar_type()) : src;
  assign_sparse(self, converted, [&](const at::Tensor& part) {
    return part.to(self.device(), part.scalar_type(), non_blocking, /*copy=*/true);
  });
  return self;
}

// torch's own constructors allocate on the current device: select the one that is asked for.

using Dtype = std::optional<at::ScalarType>;
using Layout = std::optional<at::Layout>;
using Device = std::optional<at::Device>;
using Pinned = std::optional<bool>;
using Format = std::optional<at::MemoryFormat>;

at::Tensor empty_coo(at::IntArrayRef size, Dtype dtype, Layout layout, Device device, Pinned pinned, Format format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::native::empty_sparse(size, dtype, layout, device, pinned, format);
}

at::Tensor empty_compressed(at::IntArrayRef size, Dtype dtype, Layout layout, Device device, Pinned pinned,
                            Format format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::native::empty_sparse_compressed(size, dtype, layout, device, pinned, format);
}

at::Tensor coo_with_dims(std::int64_t sparse_dim, std::int64_t dense_dim, at::IntArrayRef size, Dtype dtype,
                         Layout layout, Device device, Pinned pinned) {
  const c10::OptionalDeviceGuard guard(device);
  return at::native::new_with_dims_sparse(sparse_dim, dense_dim, size, dtype, layout, device, pinned);
}

at::Tensor coo_with_parts(std::int64_t sparse_dim, std::int64_t dense_dim, c10::SymIntArrayRef size,
                          const at::Tensor& indices, const at::Tensor& values, Dtype dtype, Layout layout,
                          Device device, Pinned pinned, std::optional<bool> is_coalesced) {
  const c10::OptionalDeviceGuard guard(values.device());
  return at::native::new_with_dims_and_tensor_sparse_symint(sparse_dim, dense_dim, size, indices, values, dtype, layout,
                                                            device, pinned, is_coalesced);
}

at::Tensor compressed_with_dims(std::int64_t nnz, std::int64_t dense_dim, at::IntArrayRef size,
                                at::IntArrayRef blocksize, at::ScalarType index_dtype, Dtype dtype, Layout layout,
                                Device device, Pinned pinned) {
  const c10::OptionalDeviceGuard guard(device);
  return at::native::sparse_compressed_tensor_with_dims(nnz, dense_dim, size, blocksize, index_dtype, dtype, layout,
                                                        device, pinned);
}

}  // namespace

at::Tensor map_sparse(const at::Tensor& t, c10::Device device, const MapPart& map) {
  const bool npu = device.type() == kNpu;
  const c10::OptionalDeviceGuard guard(npu ? std::optional(device) : std::nullopt);
  at::Tensor to;
  if (t.layout() == at::kSparse) {
    const c10::DispatchKeySet keys(npu ? c10::DispatchKey::SparsePrivateUse1 : c10::DispatchKey::SparseCPU);
    to = at::detail::make_tensor<at::SparseTensorImpl>(keys, t.dtype());
  } else {
    const c10::DispatchKeySet keys(npu ? c10::DispatchKey::SparseCsrPrivateUse1 : c10::DispatchKey::SparseCsrCPU);
    to = at::detail::make_tensor<at::SparseCsrTensorImpl>(keys, device, t.layout(), t.dtype());
  }
  assign_sparse(to, t, map);
  return to;
}

void assign_sparse(const at::Tensor& to, const at::Tensor& from, const MapPart& map) {
  if (from.layout() == at::kSparse) {
    assign_coo(to, from, map);
  } else {
    assign_compressed(to, from, map);
  }
}

TORCH_LIBRARY_IMPL(_, SparsePrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&boxed_fallback>());
}
TORCH_LIBRARY_IMPL(_, SparseCsrPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&boxed_fallback>());
}

TORCH_LIBRARY_IMPL(aten, SparsePrivateUse1, m) {
  use_cpu_kernels(
      m, c10::DispatchKey::SparseCPU,
      {"empty.memory_format", "_sparse_coo_tensor_with_dims", "_sparse_coo_tensor_with_dims_and_tensors", "sparse_dim",
       "dense_dim", "_nnz", "is_coalesced", "_indices", "_values", "indices", "values", "_coalesced_", "copy_"});
  m.impl("empty.memory_format", TORCH_FN(empty_coo));
  m.impl("_sparse_coo_tensor_with_dims", TORCH_FN(coo_with_dims));
  m.impl("_sparse_coo_tensor_with_dims_and_tensors", TORCH_FN(coo_with_parts));
  m.impl("sparse_dim", TORCH_FN(at::native::sparse_dim_sparse));
  m.impl("dense_dim", TORCH_FN(at::native::dense_dim_sparse));
  m.impl("_nnz", TORCH_FN(at::native::_nnz_sparse));
  m.impl("is_coalesced", TORCH_FN(at::native::is_coalesced_sparse));
  m.impl("_indices", TORCH_FN(at::native::_indices_sparse));
  m.impl("_values", TORCH_FN(at::native::_values_sparse));
  m.impl("indices", TORCH_FN(at::native::indices_sparse));
  m.impl("values", TORCH_FN(at::native::values_sparse));
  m.impl("_coalesced_", TORCH_FN(at::native::_coalesced_sparse_));
  m.impl("copy_", TORCH_FN(copy_sparse));
}

TORCH_LIBRARY_IMPL(aten, SparseCsrPrivateUse1, m) {
  use_cpu_kernels(m, c10::DispatchKey::SparseCsrCPU,
                  {"empty.memory_format", "_sparse_compressed_tensor_with_dims", "sparse_dim", "dense_dim", "_nnz",
                   "crow_indices", "col_indices", "ccol_indices", "row_indices", "values", "copy_"});
  m.impl("empty.memory_format", TORCH_FN(empty_compressed));
  m.impl("_sparse_compressed_tensor_with_dims", TORCH_FN(compressed_with_dims));
  m.impl("sparse_dim", TORCH_FN(at::native::sparse_dim_sparse_csr));
  m.impl("dense_dim", TORCH_FN(at::native::dense_dim_sparse_csr));
  m.impl("_nnz", TORCH_FN(at::native::_nnz_sparse_csr));
  m.impl("crow_indices", TORCH_FN(at::native::crow_indices_sparse_csr));
  m.impl("col_indices", TORCH_FN(at::native::col_indices_sparse_csr));
  m.impl("ccol_indices", TORCH_FN(at::native::ccol_indices_sparse_csr));
  m.impl("row_indices", TORCH_FN(at::native::row_indices_sparse_csr));
  m.impl("values", TORCH_FN(at::native::values_sparse_csr));
  m.impl("copy_", TORCH_FN(copy_sparse));
}

}  // namespace npu::aten
