// Memory pools and pluggable allocators.
#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "bindings.h"
#include "runtime/device.h"
#include "runtime/memory_pool.h"

namespace npu::python {
namespace {

// Functions of a user's library.  Sizes are ssize_t and the stream is an opaque pointer, as its authors write them.
class PluggableAllocator final : public SegmentSource {
 public:
  using Allocate = void* (*)(ssize_t, int, void*);
  using Free = void (*)(void*, ssize_t, int, void*);

  PluggableAllocator(std::uintptr_t allocate, std::uintptr_t free)
      : allocate_(reinterpret_cast<Allocate>(allocate)), free_(reinterpret_cast<Free>(free)) {}

  void* allocate(std::size_t bytes, int device, Stream* stream) override {
    return allocate_(static_cast<ssize_t>(bytes), device, stream);
  }
  void free(void* address, std::size_t bytes, int device, Stream* stream) override {
    free_(address, static_cast<ssize_t>(bytes), device, stream);
  }

  void (*on_init)(int device_count) = nullptr;

 private:
  const Allocate allocate_;
  const Free free_;
};

}  // namespace

void bind_memory_pools(py::module_& module) {
  py::class_<PluggableAllocator, std::shared_ptr<PluggableAllocator>> allocator(module, "_PluggableAllocator");
  allocator.def(py::init<std::uintptr_t, std::uintptr_t>())
      .def("set_init_fn", [](PluggableAllocator& self, std::uintptr_t function) {
        self.on_init = reinterpret_cast<void (*)(int)>(function);
      });
  for (const char* name : {"set_reset_fn", "set_memory_fraction_fn", "set_base_alloc_fn", "set_record_stream_fn",
                           "set_erase_stream_fn", "set_get_device_stats_fn", "set_reset_peak_status_fn",
                           "set_begin_allocate_to_pool", "set_end_allocate_to_pool_fn", "set_release_pool"}) {
    allocator.def(name, [name](PluggableAllocator&, std::uintptr_t) {
      PyErr_Format(PyExc_NotImplementedError,
                   "%s: expected only set_init_fn; statistics, limits, streams and pools of a pluggable allocator are "
                   "kept by torch_npu itself, so leave this setter out",
                   name);
      throw py::error_already_set();
    });
  }
  module.def("_change_allocator", call([](const std::shared_ptr<PluggableAllocator>& allocator) {
               change_segment_source(allocator);
               if (allocator->on_init != nullptr) allocator->on_init(device_count());
             }));

  module.def("_new_pool_id", call([] { return new_memory_pool_id(); }));
  module.def("_retain_pool",
             call([](int device, c10::MempoolId_t id, bool use_on_oom, bool no_split,
                     std::shared_ptr<PluggableAllocator> allocator) {
               retain_memory_pool(device, id, {use_on_oom, no_split, std::move(allocator)});
             }),
             py::arg("device"), py::arg("pool_id"), py::arg("use_on_oom"), py::arg("no_split"),
             py::arg("allocator").none(true));
  module.def("_release_pool",
             call_without_gil([](int device, c10::MempoolId_t id) { release_memory_pool(device, id); }));
  module.def("_pool_uses", call([](int device, c10::MempoolId_t id) { return memory_pool_uses(device, id); }));
  module.def("_begin_allocating_to_pool",
             call([](int device, c10::MempoolId_t id) { begin_allocating_to_pool(device, id); }));
  module.def("_end_allocating_to_pool",
             call_without_gil([](int device, c10::MempoolId_t id) { end_allocating_to_pool(device, id); }));
}

}  // namespace npu::python
