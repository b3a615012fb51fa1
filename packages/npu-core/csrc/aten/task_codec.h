#pragma once
// How an op's arguments cross from the dispatching thread to the engine: as flat bytes.  No TensorImpl, no reference
// count and no destructor crosses; device memory stays valid because frees are ordered by the stream.

#include <ATen/core/IListRef.h>
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "empty.h"
#include "engine_thread.h"

namespace npu::aten {

// ---- writing ---------------------------------------------------------------------------------------------------

// Collects the bytes of one task.  Everything is 8-byte aligned.
class TaskWriter {
 public:
  explicit TaskWriter(const char* op) : op_(op) {}
  TaskWriter(const TaskWriter&) = delete;
  TaskWriter& operator=(const TaskWriter&) = delete;

  // An operand of the op: an npu tensor of the op's device, or a 0-dim CPU tensor (read now, passed by value).
  void tensor(const at::TensorBase& t);
  // For copies: strided memory of any device or the host, by address.  The caller keeps it valid until the task ran.
  void tensor_by_address(const at::TensorBase& t);
  // For copies: a contiguous CPU tensor whose bytes travel in the task.
  void tensor_by_value(const at::TensorBase& t);
  void bytes(const void* data, size_t size) {
    std::byte* to = extend((size + 7) & ~size_t{7});
    if (size != 0) std::memcpy(to, data, size);
  }
  template <class T>
  void value(const T& v) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes(&v, sizeof(T));
  }
  template <class T>
  void array(c10::ArrayRef<T> a) {
    value(static_cast<std::int64_t>(a.size()));
    bytes(a.data(), a.size() * sizeof(T));
  }

  const void* data() const { return large_.empty() ? inline_.data() : large_.data(); }
  size_t size() const { return size_; }
  // Device of the npu tensors seen; -1 when there was none.
  int device() const { return device_; }

 private:
  std::byte* extend(size_t size);
  void remember(const c10::TensorImpl* impl) {
    if (tensors_ < kTracked) seen_[tensors_] = impl;
    ++tensors_;
  }

  static constexpr size_t kInline = 1024;
  static constexpr size_t kTracked = 8;
  const char* op_;
  size_t size_ = 0;
  int device_ = -1;
  std::uint32_t tensors_ = 0;
  std::array<const c10::TensorImpl*, kTracked> seen_;
  alignas(16) std::array<std::byte, kInline> inline_;
  std::vector<std::byte> large_;
};

// Head of a tensor in the byte stream; sizes follow, then strides unless Contiguous.
struct TensorHead {
  enum Flag : std::uint16_t {
    kUndefined = 1,   // nothing follows
    kContiguous = 2,  // strides are implied
    kByValue = 4,     // contiguous; the elements follow the sizes instead of an address
    kWrapped = 8,     // python number
    kConj = 16,
    kNeg = 32,
    kSameAs = 64,  // `index` names an earlier tensor of this task: keep the identity, as in-place kernels need
  };
  void* data;
  std::uint16_t flags;
  std::uint8_t dtype;
  std::uint8_t ndim;
  std::uint32_t index;
};
static_assert(sizeof(TensorHead) == 16);

// ---- reading ---------------------------------------------------------------------------------------------------

class TaskReader {
 public:
  explicit TaskReader(void* payload) : at_(static_cast<std::byte*>(payload)), thread_(EngineThread::current()) {
    thread_.begin_task();
  }
  const at::Tensor& tensor();
  void* raw(size_t size) {
    void* p = at_;
    at_ += (size + 7) & ~size_t{7};
    return p;
  }
  template <class T>
  T value() {
    T v;
    std::memcpy(&v, raw(sizeof(T)), sizeof(T));
    return v;
  }
  template <class T>
  c10::ArrayRef<T> array() {  // points into the payload
    const auto n = static_cast<size_t>(value<std::int64_t>());
    return c10::ArrayRef<T>(static_cast<T*>(raw(n * sizeof(T))), n);  // braces would make a list of two for bool
  }

 private:
  std::byte* at_;
  EngineThread& thread_;
};

// ---- one codec per kernel parameter type -------------------------------------------------------------------------
// encode() takes what callers have, decode() returns a holder whose get() is what the kernel takes.

template <class T>
struct Holder {
  T value;
  const T& get() const { return value; }
};

template <class T>
struct Codec {  // plain values: bool, int64_t, double, enums
  static_assert(std::is_trivially_copyable_v<T>, "no codec for this kernel parameter type");
  static void encode(TaskWriter& w, const T& v) { w.value(v); }
  static Holder<T> decode(TaskReader& r) { return {r.value<T>()}; }
};

template <class T>
struct Codec<std::optional<T>> {
  static void encode(TaskWriter& w, const std::optional<T>& v) {
    w.value(static_cast<std::int64_t>(v.has_value()));
    if (v) Codec<T>::encode(w, *v);
  }
  static Holder<std::optional<T>> decode(TaskReader& r) {
    if (r.value<std::int64_t>() == 0) return {std::nullopt};
    return {std::optional<T>(Codec<T>::decode(r).get())};
  }
};

struct TensorHolder {
  const at::Tensor& tensor;
  const at::Tensor& get() const { return tensor; }
};

template <>
struct Codec<at::Tensor> {
  static void encode(TaskWriter& w, const at::TensorBase& t) { w.tensor(t); }
  static TensorHolder decode(TaskReader& r) { return {r.tensor()}; }
};

template <>
struct Codec<std::optional<at::Tensor>> {
  static void encode(TaskWriter& w, const std::optional<at::Tensor>& t) { w.tensor(t ? *t : at::Tensor()); }
  static Holder<std::optional<at::Tensor>> decode(TaskReader& r) {
    const at::Tensor& t = r.tensor();
    return {t.defined() ? std::optional<at::Tensor>(t) : std::nullopt};
  }
};

template <>
struct Codec<at::OptionalTensorRef> {
  static void encode(TaskWriter& w, const at::OptionalTensorRef& t) { w.tensor(t.has_value() ? *t : at::Tensor()); }
  static void encode(TaskWriter& w, const std::optional<at::Tensor>& t) { w.tensor(t ? *t : at::Tensor()); }
  static void encode(TaskWriter& w, const at::Tensor& t) { w.tensor(t); }
  struct Ref {
    const at::Tensor& tensor;
    at::OptionalTensorRef get() const {
      return tensor.defined() ? at::OptionalTensorRef(tensor) : at::OptionalTensorRef();
    }
  };
  static Ref decode(TaskReader& r) { return {r.tensor()}; }
};

struct TensorsHolder {
  std::vector<at::Tensor> tensors;
  const std::vector<at::Tensor>& get() const { return tensors; }
};

template <>
struct Codec<at::TensorList> {
  template <class List>
  static void encode(TaskWriter& w, const List& list) {
    w.value(static_cast<std::int64_t>(list.size()));
    for (const at::Tensor& t : list) w.tensor(t);
  }
  static TensorsHolder decode(TaskReader& r) {
    TensorsHolder h;
    h.tensors.resize(static_cast<size_t>(r.value<std::int64_t>()));
    for (auto& t : h.tensors) t = r.tensor();
    return h;
  }
};

template <>
struct Codec<at::ITensorListRef> : Codec<at::TensorList> {
  struct Lists {
    std::vector<at::Tensor> tensors;
    at::ITensorListRef get() const { return at::ITensorListRef(tensors); }
  };
  static Lists decode(TaskReader& r) { return {Codec<at::TensorList>::decode(r).tensors}; }
};

template <>
struct Codec<at::IOptTensorListRef> {
  static void encode(TaskWriter& w, const at::IOptTensorListRef& list) {
    w.value(static_cast<std::int64_t>(list.size()));
    for (const at::OptionalTensorRef& t : list) Codec<at::OptionalTensorRef>::encode(w, t);
  }
  struct Lists {
    c10::List<std::optional<at::Tensor>> tensors;
    at::IOptTensorListRef get() const { return at::IOptTensorListRef(tensors); }
  };
  static Lists decode(TaskReader& r) {
    Lists h;
    const auto n = r.value<std::int64_t>();
    for (std::int64_t i = 0; i < n; ++i) {
      const at::Tensor& t = r.tensor();
      h.tensors.push_back(t.defined() ? std::optional<at::Tensor>(t) : std::nullopt);
    }
    return h;
  }
};

// Scalars travel as a tag and 16 bytes; symbolic ones never reach a backend kernel.
template <>
struct Codec<at::Scalar> {
  static void encode(TaskWriter& w, const at::Scalar& s);
  static Holder<at::Scalar> decode(TaskReader& r);
};

template <>
struct Codec<at::OptionalScalarRef> {
  static void encode(TaskWriter& w, const at::OptionalScalarRef& s) {
    w.value(static_cast<std::int64_t>(s.has_value()));
    if (s.has_value()) Codec<at::Scalar>::encode(w, s.get());
  }
  struct Ref {
    std::optional<at::Scalar> scalar;
    at::OptionalScalarRef get() const { return scalar ? at::OptionalScalarRef(*scalar) : at::OptionalScalarRef(); }
  };
  static Ref decode(TaskReader& r) {
    if (r.value<std::int64_t>() == 0) return {};
    return {Codec<at::Scalar>::decode(r).value};
  }
};

template <class T>
struct Codec<c10::ArrayRef<T>> {
  static void encode(TaskWriter& w, c10::ArrayRef<T> a) { w.array(a); }
  static Holder<c10::ArrayRef<T>> decode(TaskReader& r) { return {r.array<T>()}; }
};

template <class T>
struct Codec<c10::OptionalArrayRef<T>> {
  static void encode(TaskWriter& w, const c10::OptionalArrayRef<T>& a) {
    w.value(static_cast<std::int64_t>(a.has_value()));
    if (a.has_value()) w.array(*a);
  }
  static Holder<c10::OptionalArrayRef<T>> decode(TaskReader& r) {
    if (r.value<std::int64_t>() == 0) return {std::nullopt};
    return {r.array<T>()};
  }
};

template <>
struct Codec<std::string_view> {
  static void encode(TaskWriter& w, std::string_view s) { w.array(c10::ArrayRef<char>(s.data(), s.size())); }
  static Holder<std::string_view> decode(TaskReader& r) {
    const auto a = r.array<char>();
    return {std::string_view(a.data(), a.size())};
  }
};

}  // namespace npu::aten
