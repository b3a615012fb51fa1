#pragma once
#include <tuple>
#include <type_traits>

#include "runtime/error.h"
#include "runtime/stream.h"
#include "task_codec.h"

namespace npu::aten {
namespace detail {

template <class F>
struct KernelTraits;

template <class... P>
struct KernelTraits<void (*)(P...)> {
  template <auto Kernel>
  static npu_status run(void* payload, npu_error* error) noexcept {
    try {
      TaskReader reader(payload);
      // Braces fix the order of decoding.
      std::tuple holders{Codec<std::remove_cvref_t<P>>::decode(reader)...};
      std::apply([](const auto&... h) { Kernel(h.get()...); }, holders);
      return NPU_OK;
    } catch (...) {
      return capture_exception(error);
    }
  }

  template <class... Args>
  static void encode(TaskWriter& writer, const Args&... args) {
    static_assert(sizeof...(Args) == sizeof...(P), "launch_op: argument count differs from the kernel's");
    (Codec<std::remove_cvref_t<P>>::encode(writer, args), ...);
  }
};

void submit_to(Stream* stream, const TaskWriter& writer, const char* op, npu_task_fn run, npu_task_kind kind);

inline void submit(const TaskWriter& writer, const char* op, npu_task_fn run, npu_task_kind kind) {
  submit_to(current_stream(writer.device()), writer, op, run, kind);
}

}  // namespace detail

// Queues `Kernel`, a free function that calls CPU kernels, on the current stream of the tensors' device.  It runs on
// the engine with CPU tensors that alias the same memory.
//
// The arguments are what the dispatching thread has; each must convert to the kernel's parameter type.  All tensors
// must live on one npu device; 0-dim CPU tensors are read now and passed by value.  The same tensor passed twice is
// the same tensor for the kernel.  Tensors need not be kept alive: their memory is reused in stream order only.
template <auto Kernel, class... Args>
void launch_op(const char* op, const Args&... args) {
  using Traits = detail::KernelTraits<decltype(Kernel)>;
  TaskWriter writer(op);
  Traits::encode(writer, args...);
  detail::submit(writer, op, &Traits::template run<Kernel>, NPU_TASK_COMPUTE);
}

// For writers filled by hand (copies): queues `Kernel` on a given stream.
template <auto Kernel>
void launch_written(const char* op, const TaskWriter& writer, Stream* stream) {
  detail::submit_to(stream, writer, op, &detail::KernelTraits<decltype(Kernel)>::template run<Kernel>,
                    NPU_TASK_COMPUTE);
}

}  // namespace npu::aten
