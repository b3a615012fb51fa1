// Copies between npu tensors, devices and the host, and reading scalars back.
#include <ATen/Dispatch.h>
#include <ATen/Dispatch_v2.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <torch/library.h>

#include <cstring>

#include "copy.h"
#include "empty.h"
#include "engine_call.h"
#include "launch_op.h"
#include "runtime/device.h"
#include "runtime/error.h"
#include "runtime/event.h"
#include "runtime/pinned_memory.h"

namespace npu::aten {
namespace {

// Host tensors up to this size travel inside the task, so the caller need not wait.
constexpr size_t kByValueBytes = 16 << 10;
// Below this a plain memcpy beats waking the copy engine.
constexpr size_t kCopyEngineBytes = 1 << 20;

void run_copy(const at::Tensor& dst, const at::Tensor& src) { const_cast<at::Tensor&>(dst).copy_(src); }

// One block of bytes can be moved without looking at elements.
bool is_plain(const at::Tensor& dst, const at::Tensor& src) {
  return dst.dtype() == src.dtype() && dst.is_contiguous() && src.is_contiguous() && dst.is_conj() == src.is_conj() &&
         dst.is_neg() == src.is_neg();
}

void enqueue(Stream* stream, const at::Tensor& dst, const at::Tensor& src) {
  if (dst.nbytes() >= kCopyEngineBytes && is_plain(dst, src)) {
    copy_memory(stream, dst.data_ptr(), src.const_data_ptr(), dst.nbytes());
    return;
  }
  TaskWriter writer("aten::copy_");
  writer.tensor_by_address(dst);
  writer.tensor_by_address(src);
  launch_written<&run_copy>("aten::copy_", writer, stream);
}

void between_devices(const at::Tensor& dst, const at::Tensor& src) {
  Stream* from = current_stream(src.device().index());
  Stream* to = current_stream(dst.device().index());
  if (from == to) {
    enqueue(from, dst, src);
    return;
  }
  // Ordered on both streams: after what `to` still does with dst, and before what it does next.
  auto destroy = [](Event* e) { destroy_event(e); };
  std::unique_ptr<Event, decltype(destroy)> ready(create_event(false), destroy), done(create_event(false), destroy);
  record_event(ready.get(), to);
  wait_event(ready.get(), from);
  enqueue(from, dst, src);
  record_event(done.get(), from);
  wait_event(done.get(), to);
}

// A copy that uses the caller's memory and so must not be left alone.  What may take long and may be interrupted is the
// wait for earlier work.
void enqueue_and_wait(Stream* stream, const at::Tensor& dst, const at::Tensor& src) {
  note_host_synchronization();
  if (!stream_query(stream)) wait_and_throw(stream, Wait::Interruptible);
  enqueue(stream, dst, src);
  wait_and_throw(stream);
}

void from_host(const at::Tensor& dst, const at::Tensor& src, bool non_blocking) {
  Stream* stream = current_stream(dst.device().index());
  // Pinned memory is read when the stream gets there: earlier work of the stream may still write it.
  const bool in_stream_order = non_blocking && src.is_pinned();
  if (src.nbytes() <= kByValueBytes && !in_stream_order) {
    TaskWriter writer("aten::copy_");
    writer.tensor_by_address(dst);
    writer.tensor_by_value(src.contiguous());
    launch_written<&run_copy>("aten::copy_", writer, stream);
    return;
  }
  if (in_stream_order) {
    enqueue(stream, dst, src);
    pinned_record_stream(src.storage().data(), stream);
  } else {
    enqueue_and_wait(stream, dst, src);
  }
}

void to_host(const at::Tensor& dst, const at::Tensor& src, bool non_blocking) {
  Stream* stream = current_stream(src.device().index());
  if (non_blocking && dst.is_pinned()) {
    enqueue(stream, dst, src);
    pinned_record_stream(dst.storage().data(), stream);
    return;
  }
  if (dst.nbytes() < kCopyEngineBytes && is_plain(dst, src)) {
    synchronize_stream(stream, Wait::Interruptible);
    std::memcpy(dst.data_ptr(), src.const_data_ptr(), dst.nbytes());
    return;
  }
  enqueue_and_wait(stream, dst, src);
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& src, bool non_blocking) {
  TORCH_CHECK(self.defined() && src.defined(), "copy_: self and src must be defined tensors");
  if (self.is_same(src)) return self;
  at::assert_no_internal_overlap(self);
  if (self.is_contiguous() && src.is_contiguous() && self.sizes() == src.sizes() && self.numel() == 0) return self;
  const at::Tensor from = src.sizes() == self.sizes() ? src : src.expand(self.sizes());
  if (self.numel() == 0) return self;
  const bool self_on_npu = is_npu(self), src_on_npu = is_npu(from);
  if (self_on_npu && src_on_npu) {
    at::assert_no_partial_overlap(self, from);
    between_devices(self, from);
  } else if (self_on_npu) {
    TORCH_CHECK_NOT_IMPLEMENTED(from.is_cpu() && from.layout() == at::kStrided, "copy_: copying a ", from.layout(),
                                " tensor on ", from.device(),
                                " to npu is not supported; copy through a dense CPU tensor");
    from_host(self, from, non_blocking);
  } else {
    TORCH_CHECK_NOT_IMPLEMENTED(self.is_cpu() && self.layout() == at::kStrided, "copy_: copying npu memory to a ",
                                self.layout(), " tensor on ", self.device(),
                                " is not supported; copy through a dense CPU tensor");
    to_host(self, from, non_blocking);
  }
  return self;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& dst, bool non_blocking) {
  at::Tensor to = dst;
  return copy_(to, self, non_blocking);
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& dst) {
  at::Tensor to = dst;
  if (to.sizes() != self.sizes()) to.resize_(self.sizes());
  return copy_(to, self, /*non_blocking=*/false);
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  synchronize_stream(current_stream(self.device().index()), Wait::Interruptible);
  at::Scalar result;
  AT_DISPATCH_V2(self.scalar_type(), "_local_scalar_dense_npu",
                 AT_WRAP([&] { result = at::Scalar(*static_cast<const scalar_t*>(self.const_data_ptr())); }),
                 AT_EXPAND(AT_ALL_TYPES_AND_COMPLEX), AT_EXPAND(AT_BAREBONES_UNSIGNED_TYPES),
                 AT_EXPAND(AT_FLOAT8_TYPES), at::kComplexHalf, at::kHalf, at::kBool, at::kBFloat16);
  return result;
}

}  // namespace

namespace {

struct HostBytes {  // the bytes follow
  void* dst;
  std::size_t bytes;
};

}  // namespace

void copy_from_host(Stream* stream, void* dst, const void* host, std::size_t bytes) {
  if (bytes == 0) return;
  if (bytes > kByValueBytes) {
    note_host_synchronization();
    copy_memory(stream, dst, host, bytes);
    wait_and_throw(stream);
    return;
  }
  TaskWriter writer("memory_copy");
  writer.value(HostBytes{dst, bytes});
  writer.bytes(host, bytes);
  detail::submit_to(
      stream, writer, "memory_copy",
      [](void* payload, npu_error*) noexcept {
        const auto* head = static_cast<HostBytes*>(payload);
        std::memcpy(head->dst, head + 1, head->bytes);
        return NPU_OK;
      },
      NPU_TASK_COMPUTE);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("copy_", TORCH_FN(copy_));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("_local_scalar_dense", TORCH_FN(local_scalar_dense));
}

}  // namespace npu::aten
