#include "task_codec.h"

#include <c10/core/Scalar.h>

namespace npu::aten {
namespace {

struct FlatScalar {
  std::int64_t tag;  // c10::Scalar's kind as a ScalarType
  union {
    double d[2];
    std::int64_t i;
    std::uint64_t u;
  };
};

}  // namespace

std::byte* TaskWriter::extend(size_t size) {
  const size_t at = size_;
  size_ += size;
  if (C10_LIKELY(large_.empty() && size_ <= kInline)) return inline_.data() + at;
  if (large_.empty()) large_.assign(inline_.data(), inline_.data() + at);
  large_.resize(size_);
  return large_.data() + at;
}

void TaskWriter::tensor(const at::TensorBase& t) {
  if (!t.defined()) {
    remember(nullptr);
    value(TensorHead{nullptr, TensorHead::kUndefined, 0, 0, 0});
    return;
  }
  const c10::TensorImpl* impl = t.unsafeGetTensorImpl();
  const c10::Device device = impl->device();
  if (C10_UNLIKELY(device.type() != kNpu)) {
    TORCH_CHECK(device.type() == c10::DeviceType::CPU && impl->dim() == 0,
                "Expected all tensors to be on the same device, but found at least two devices, npu",
                device_ < 0 ? std::string() : ":" + std::to_string(device_), " and ", device, "! (", op_, ")");
    tensor_by_value(t);
    return;
  }
  if (device_ < 0) device_ = device.index();
  TORCH_CHECK(device_ == device.index(),
              "Expected all tensors to be on the same device, but found at least two devices, npu:", device_, " and ",
              device, "! (", op_, ")");
  for (std::uint32_t i = 0, n = std::min<std::uint32_t>(tensors_, kTracked); i < n; ++i) {
    if (seen_[i] == impl) {
      remember(impl);
      value(TensorHead{nullptr, TensorHead::kSameAs, 0, 0, i});
      return;
    }
  }
  tensor_by_address(t);
}

void TaskWriter::tensor_by_address(const at::TensorBase& t) {
  c10::TensorImpl* impl = t.unsafeGetTensorImpl();
  remember(impl);
  const auto sizes = impl->sizes();
  const size_t ndim = sizes.size();
  const bool contiguous = impl->is_contiguous();
  std::byte* to = extend(sizeof(TensorHead) + ndim * sizeof(std::int64_t) * (contiguous ? 1 : 2));
  TensorHead head;
  auto* base = static_cast<std::byte*>(impl->unsafe_storage().unsafeGetStorageImpl()->mutable_data());
  head.data = base == nullptr ? nullptr : base + impl->storage_offset() * static_cast<std::int64_t>(impl->itemsize());
  head.flags = contiguous ? TensorHead::kContiguous : 0;
  if (C10_UNLIKELY(impl->is_conj())) head.flags |= TensorHead::kConj;
  if (C10_UNLIKELY(impl->is_neg())) head.flags |= TensorHead::kNeg;
  head.dtype = static_cast<std::uint8_t>(c10::typeMetaToScalarType(impl->dtype()));
  head.ndim = static_cast<std::uint8_t>(ndim);
  head.index = 0;
  std::memcpy(to, &head, sizeof(head));
  if (ndim == 0) return;
  std::memcpy(to + sizeof(head), sizes.data(), ndim * sizeof(std::int64_t));
  if (!contiguous) {
    std::memcpy(to + sizeof(head) + ndim * sizeof(std::int64_t), impl->strides().data(), ndim * sizeof(std::int64_t));
  }
}

// Read now: the caller may change the tensor before the task runs.
void TaskWriter::tensor_by_value(const at::TensorBase& t) {
  c10::TensorImpl* impl = t.unsafeGetTensorImpl();
  remember(nullptr);
  const auto sizes = impl->sizes();
  TensorHead head{nullptr, TensorHead::kByValue | TensorHead::kContiguous,
                  static_cast<std::uint8_t>(c10::typeMetaToScalarType(impl->dtype())),
                  static_cast<std::uint8_t>(sizes.size()), 0};
  if (impl->is_wrapped_number()) head.flags |= TensorHead::kWrapped;
  if (impl->is_conj()) head.flags |= TensorHead::kConj;
  if (impl->is_neg()) head.flags |= TensorHead::kNeg;
  value(head);
  bytes(sizes.data(), sizes.size() * sizeof(std::int64_t));
  bytes(t.const_data_ptr(), static_cast<size_t>(impl->numel()) * impl->itemsize());
}

const at::Tensor& TaskReader::tensor() {
  TensorHead head;
  std::memcpy(&head, raw(sizeof(head)), sizeof(head));
  if (C10_UNLIKELY((head.flags & TensorHead::kUndefined) != 0)) return thread_.undefined_slot();
  if (C10_UNLIKELY((head.flags & TensorHead::kSameAs) != 0)) return thread_.same_as(head.index);
  const size_t ndim = head.ndim;
  const auto dtype = static_cast<at::ScalarType>(head.dtype);
  const at::IntArrayRef sizes(static_cast<std::int64_t*>(raw(ndim * sizeof(std::int64_t))), ndim);
  c10::SmallVector<std::int64_t, 8> implied;
  at::IntArrayRef strides;
  std::int64_t count = 1;
  if ((head.flags & TensorHead::kContiguous) != 0) {
    implied.resize(ndim);
    std::int64_t step = 1;
    for (size_t d = ndim; d-- > 0;) {
      implied[d] = step;
      step *= std::max<std::int64_t>(sizes[d], 1);
      count *= sizes[d];
    }
    strides = implied;
  } else {
    strides = at::IntArrayRef(static_cast<std::int64_t*>(raw(ndim * sizeof(std::int64_t))), ndim);
  }
  if (C10_UNLIKELY((head.flags & TensorHead::kByValue) != 0)) {
    head.data = raw(static_cast<size_t>(count) * c10::elementSize(dtype));
  }
  return thread_.alias(head.data, dtype, sizes, strides, (head.flags & TensorHead::kConj) != 0,
                       (head.flags & TensorHead::kNeg) != 0, (head.flags & TensorHead::kWrapped) != 0);
}

void Codec<at::Scalar>::encode(TaskWriter& w, const at::Scalar& s) {
  FlatScalar f{};
  f.tag = static_cast<std::int64_t>(s.type());
  if (s.isComplex()) {
    const auto c = s.toComplexDouble();
    f.d[0] = c.real();
    f.d[1] = c.imag();
  } else if (s.isFloatingPoint()) {
    f.d[0] = s.toDouble();
  } else if (s.isBoolean()) {
    f.i = s.toBool() ? 1 : 0;
  } else if (s.type() == at::kUInt64) {
    f.u = s.toUInt64();
  } else {
    f.i = s.toLong();
  }
  w.value(f);
}

Holder<at::Scalar> Codec<at::Scalar>::decode(TaskReader& r) {
  const auto f = r.value<FlatScalar>();
  const auto tag = static_cast<at::ScalarType>(f.tag);
  if (at::isComplexType(tag)) return {at::Scalar(c10::complex<double>(f.d[0], f.d[1]))};
  if (at::isFloatingType(tag)) return {at::Scalar(f.d[0])};
  if (tag == at::kBool) return {at::Scalar(f.i != 0)};
  if (tag == at::kUInt64) return {at::Scalar(f.u)};
  return {at::Scalar(f.i)};
}

}  // namespace npu::aten
