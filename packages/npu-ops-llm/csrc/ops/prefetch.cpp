// npu_prefetch: schema, checks and task.  Fake and side effect: src/npu_ops_llm/prefetch.py.
#include <unistd.h>

#include <algorithm>

#include "npu/kernels/launch.h"
#include "npu/kernels/stable_tensor.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

constexpr int64_t kCacheLine = 64;

/// What one core's second-level cache holds: asking for more would push out what was asked for first.
int64_t cache_bytes() {
  static const int64_t bytes = [] {
    long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return found > 0 ? static_cast<int64_t>(found) : int64_t{1} << 20;
  }();
  return bytes;
}

struct PrefetchTask {
  const char* begin;
  int64_t bytes;
};

npu_status run_prefetch(void* payload, npu_error*) {
  const auto& task = *static_cast<const PrefetchTask*>(payload);
  for (int64_t i = 0; i < task.bytes; i += kCacheLine) __builtin_prefetch(task.begin + i, 0, 2);
  return NPU_OK;
}

void prefetch(const Tensor& self, OptionalTensor dependency, int64_t max_size, int64_t offset) {
  constexpr const char* kOp = "npu_prefetch";
  NPU_CHECK_ARG(max_size > 0, kOp, "max_size", "max_size should be greater than zero, but got ", max_size);
  NPU_CHECK_ARG(offset >= 0, kOp, "offset", "offset should not be smaller than zero, but got ", offset);
  int64_t size = bytes_of(self);
  NPU_CHECK_ARG(offset < size, kOp, "offset", "offset out of range of tensor size, tensor size: ", size,
                ", offset: ", offset);
  Device device = device_of(self);
  PrefetchTask task{static_cast<const char*>(self.data_ptr()) + offset,
                    std::min({max_size, size - offset, cache_bytes()})};
  // The dependency is on the same stream in every sensible use; listing it shows the order to the observers.
  launch(device, "npu::npu_prefetch", run_prefetch, task, {reads(self), reads(dependency)});
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("npu_prefetch(Tensor self, Tensor? dependency, int max_size, int offset=0) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) { m.impl("npu_prefetch", TORCH_BOX(&prefetch)); }

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) { m.impl("npu_prefetch", TORCH_BOX(&prefetch)); }

}  // namespace npu::ops_llm
