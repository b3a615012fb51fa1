#pragma once
#include <ATen/core/Tensor.h>

#include <deque>
#include <vector>

namespace npu::aten {

// What a thread of the driver needs before it runs ATen kernels: autograd and the batching keys excluded, the host's
// number of threads, and a pool of CPU tensors that are re-aimed at device memory task after task.
class EngineThread {
 public:
  // The calling thread's state, set up at its first task.
  static EngineThread& current();

  // A CPU tensor over [data, ...).  Valid until the next begin_task() of this thread.
  const at::Tensor& alias(void* data, at::ScalarType dtype, at::IntArrayRef sizes, at::IntArrayRef strides, bool conj,
                          bool neg, bool wrapped_number);
  // The two below also count as tensors of the task, so that indices agree with the writer's.
  const at::Tensor& undefined_slot() { return *slots_.emplace_back(&undefined_); }
  const at::Tensor& same_as(size_t index) { return *slots_.emplace_back(slots_[index]); }

  void begin_task() {
    used_ = 0;
    slots_.clear();
  }

 private:
  EngineThread();
  std::deque<at::Tensor> pool_;  // stable addresses: kernels hold references into it
  size_t used_ = 0;
  std::vector<const at::Tensor*> slots_;  // tensors of the current task, in reading order
  at::Tensor undefined_;
};

}  // namespace npu::aten
