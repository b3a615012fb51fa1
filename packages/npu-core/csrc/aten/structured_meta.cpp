#define AT_PER_OPERATOR_HEADERS
#include "structured_meta.h"

#include <ATen/native/IndexingUtils.h>
#include <ATen/native/Resize.h>

#include <algorithm>
#include <cstdlib>

namespace npu::aten {
namespace {

at::Tensor allocate(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options) {
  const at::ScalarType dtype = c10::typeMetaToScalarType(options.dtype());
  const int device = options.device().index();
  return strides.empty() ? empty_npu(sizes, dtype, device, options.memory_format_opt())
                         : empty_strided_npu(sizes, strides, dtype, device);
}

// One element of memory under the full size: meta() may look at it, nobody may write it.
at::Tensor placeholder(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options) {
  at::Tensor t = empty_npu({1}, c10::typeMetaToScalarType(options.dtype()), options.device().index());
  if (strides.empty()) {
    t.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  } else {
    t.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
  }
  return t;
}

void check_in_place(const at::Tensor& self, at::IntArrayRef sizes, const at::TensorOptions& options) {
  TORCH_CHECK(options.dtype() == self.dtype(), "Bad in-place call: input tensor dtype ", self.dtype(),
              " and output tensor dtype ", options.dtype(), " should match");
  TORCH_CHECK(options.device() == self.device(), "Bad in-place call: input tensor device ", self.device(),
              " and output tensor device ", options.device(), " should match");
  TORCH_CHECK(sizes == self.sizes(), "Bad in-place call: input tensor size ", self.sizes(), " and output tensor size ",
              sizes, " should match");
}

void resize_given(at::Tensor& out, at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options) {
  TORCH_CHECK(options.dtype() == out.dtype(), "Expected out tensor to have dtype ", options.dtype(), ", but got ",
              out.dtype(), " instead");
  TORCH_CHECK(options.device() == out.device(), "Expected out tensor to have device ", options.device(), ", but got ",
              out.device(), " instead");
  // Strides are advice: an output that already has the size keeps its own, and the kernel writes through them.
  if (!at::native::resize_output(out, sizes)) return;
  if (!strides.empty()) {
    out.as_strided_(sizes, strides);
  } else if (options.memory_format_opt().has_value()) {
    out.unsafeGetTensorImpl()->empty_tensor_restride(*options.memory_format_opt());
  }
}

bool in_class(DtypeClass c, at::ScalarType t) {
  switch (t) {
    case at::kHalf:
    case at::kBFloat16:
    case at::kFloat:
    case at::kDouble:
      return c != DtypeClass::kIntegral;
    case at::kByte:
    case at::kChar:
    case at::kShort:
    case at::kInt:
    case at::kLong:
      return c != DtypeClass::kFloating;
    case at::kBool:
      return c == DtypeClass::kIntegral;
    default:
      return false;
  }
}

// Nothing about the tensor but dtype, sizes and strides can matter to the result.
bool is_plain(const c10::TensorImpl* t) { return !t->is_conj() && !t->is_neg() && t->layout() == at::kStrided; }

// A number that joins operands of `lead`'s dtype without promoting them.  bool is left to meta(), which refuses it
// for some ops.
bool is_harmless_scalar(const at::Tensor& t, const at::Tensor& lead) {
  const c10::TensorImpl* impl = t.unsafeGetTensorImpl();
  if (!impl->is_cpu() || impl->dim() != 0 || !is_plain(impl)) return false;
  // Two 0-dim tensors promote each other, unless one is a Python number.
  if (!impl->is_wrapped_number() && lead.dim() == 0) return false;
  const at::ScalarType dtype = t.scalar_type();
  return in_class(DtypeClass::kFloating, dtype) ? c10::isFloatingType(lead.scalar_type())
                                                : in_class(DtypeClass::kReal, dtype) && lead.scalar_type() != at::kBool;
}

bool same_look(const at::Tensor& a, const at::Tensor& b) {
  const c10::TensorImpl* x = a.unsafeGetTensorImpl();
  const c10::TensorImpl* y = b.unsafeGetTensorImpl();
  if (x == y) return true;
  if (x->dtype() != y->dtype() || x->device() != y->device() || x->sizes() != y->sizes() || !is_plain(y)) return false;
  return x->is_contiguous() ? y->is_contiguous() : x->strides() == y->strides();
}

// For tensors of one look.  The whole of a tensor may be read and written by an op, a part of it may not.
bool overlaps_partly(const at::Tensor& a, const at::Tensor& b) {
  const c10::TensorImpl* x = a.unsafeGetTensorImpl();
  const c10::TensorImpl* y = b.unsafeGetTensorImpl();
  if (x == y || !x->unsafe_storage().is_alias_of(y->unsafe_storage())) return false;
  const int64_t distance = std::abs(x->storage_offset() - y->storage_offset());
  return distance != 0 && distance < x->numel();
}

}  // namespace

namespace detail {

void set_output(OutputMode mode, at::Tensor& out, at::IntArrayRef sizes, at::IntArrayRef strides,
                const at::TensorOptions& options) {
  switch (mode) {
    case OutputMode::kAllocate:
      out = allocate(sizes, strides, options);
      return;
    case OutputMode::kAllocateLate:
      out = placeholder(sizes, strides, options);
      return;
    case OutputMode::kInPlace:
      check_in_place(out, sizes, options);
      return;
    case OutputMode::kResize:
      resize_given(out, sizes, strides, options);
      return;
  }
}

void allocate_late_output(at::Tensor& out) {
  const size_t bytes = at::detail::computeStorageNbytes(out.sizes(), out.strides(), out.itemsize());
  auto* storage = out.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
  if (bytes > storage->nbytes()) resize_storage(storage, bytes, out.device().index());
}

}  // namespace detail

c10::List<std::optional<at::Tensor>> indices_on_device(const at::Tensor& self,
                                                       const c10::List<std::optional<at::Tensor>>& indices) {
  const auto ready = [&](const at::OptionalTensorRef& index) {
    return !index.has_value() || !index->defined() || (index->scalar_type() == at::kLong && is_npu(*index));
  };
  const at::IOptTensorListRef list(indices);
  if (std::all_of(list.begin(), list.end(), ready) || !is_npu(self)) return indices;
  at::native::checkIndexTensorTypes(list, /*allow_int=*/true);
  c10::List<std::optional<at::Tensor>> result;
  for (const at::Tensor& index : at::native::expandTensors(self, list, /*ensure_same_device=*/true)) {
    if (!index.defined()) {
      result.push_back(std::nullopt);
    } else {
      result.push_back(index.scalar_type() == at::kInt ? index.to(at::kLong) : index);
    }
  }
  return result;
}

void take_memory_format(at::Tensor& out, const at::Tensor& input) {
  out.unsafeGetTensorImpl()->empty_tensor_restride(input.suggest_memory_format());
}

const at::Tensor* pointwise_lead(PointwiseRule rule, std::initializer_list<const at::Tensor*> operands) {
  const at::Tensor* lead = nullptr;
  for (const at::Tensor* t : operands) {
    if (C10_UNLIKELY(!t->defined())) return nullptr;
    if (lead == nullptr && t->unsafeGetTensorImpl()->device_type() == kNpu) lead = t;
  }
  if (lead == nullptr || !in_class(rule.dtypes, lead->scalar_type())) return nullptr;
  const c10::TensorImpl* impl = lead->unsafeGetTensorImpl();
  if (!is_plain(impl) || !(impl->is_contiguous() || impl->is_non_overlapping_and_dense())) return nullptr;
  int scalars = 0;
  for (const at::Tensor* t : operands) {
    if (C10_LIKELY(same_look(*lead, *t))) continue;
    if (!rule.cpu_scalars || ++scalars > 1 || !is_harmless_scalar(*t, *lead)) return nullptr;
  }
  return lead;
}

bool pointwise_fits(PointwiseRule rule, const at::Tensor& out, std::initializer_list<const at::Tensor*> operands) {
  const at::Tensor* lead = pointwise_lead(rule, operands);
  if (lead == nullptr || !out.defined() || !same_look(*lead, out)) return false;
  for (const at::Tensor* t : operands) {
    if (C10_UNLIKELY(overlaps_partly(out, *t))) return false;
  }
  return true;
}

at::Tensor empty_like_lead(const at::Tensor& lead, at::ScalarType dtype) {
  const c10::TensorImpl* impl = lead.unsafeGetTensorImpl();
  const int device = impl->device().index();
  if (C10_LIKELY(impl->is_contiguous())) return empty_npu(impl->sizes(), dtype, device);
  if (impl->is_contiguous(at::MemoryFormat::ChannelsLast)) {
    return empty_npu(impl->sizes(), dtype, device, at::MemoryFormat::ChannelsLast);
  }
  return empty_strided_npu(impl->sizes(), impl->strides(), dtype, device);
}

void check_product_dtypes(std::initializer_list<const at::Tensor*> operands) {
  const at::ScalarType first = (*operands.begin())->scalar_type();
  for (const at::Tensor* operand : operands) {
    TORCH_CHECK(operand->scalar_type() == first,
                "expected m1 and m2 to have the same dtype, but got: ", c10::scalarTypeToTypeMeta(first),
                " != ", operand->dtype());
  }
}

}  // namespace npu::aten
