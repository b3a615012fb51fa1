#include <cstdint>
#include <tuple>

#include "bindings.h"
#include "runtime/event.h"
#include "runtime/stream.h"
#include "runtime/stream_handle.h"

namespace npu::python {
namespace {

// A stream crosses as (stream_id, device_index); torch.Stream holds the same two numbers.
using StreamKey = std::tuple<std::int64_t, int>;

StreamKey key_of(const Stream* stream) { return {stream->id, stream->device}; }

Event* event_from(std::uintptr_t event_id) {
  TORCH_CHECK(event_id != 0, "Event must be recorded before it can be timed.");
  return reinterpret_cast<Event*>(event_id);
}

}  // namespace

void bind_streams(py::module_& module) {
  module.def("_current_stream", call_without_gil([](int device) { return key_of(current_stream(device)); }));
  module.def("_default_stream", call_without_gil([](int device) { return key_of(default_stream(device)); }));
  module.def("_stream_from_pool",
             call_without_gil([](int device, int priority) { return key_of(stream_from_pool(device, priority)); }));
  module.def("_sync_launch_stream_from_pool",
             call_without_gil([](int device) { return key_of(sync_launch_stream_from_pool(device)); }));
  module.def("_set_current_stream",
             call_without_gil([](std::int64_t id, int device) { set_current_stream(stream_from_id(device, id)); }));
  module.def("_streams_per_pool", call([] { return streams_per_pool(); }));
  // Address of the runtime's stream object: the handle plugins pass to npu/runtime.h.
  module.def("_stream_handle", call_without_gil([](std::int64_t id, int device) {
               return reinterpret_cast<std::uintptr_t>(stream_from_id(device, id));
             }));
  module.def("_stream_from_handle",
             call([](int device, std::uintptr_t handle) { return key_of(stream_from_handle(device, handle)); }));
  module.def("_stream_query",
             call_without_gil([](std::int64_t id, int device) { return stream_query(stream_from_id(device, id)); }));
  module.def("_stream_synchronize", call_without_gil([](std::int64_t id, int device) {
               synchronize_stream(stream_from_id(device, id), Wait::Interruptible);
             }));

  // `event_id` is torch.Event.event_id: the address of the npu::Event that the device guard made.
  module.def("_event_synchronize", call_without_gil([](std::uintptr_t event_id) {
               synchronize_event(event_from(event_id), Wait::Interruptible);
             }));
  module.def("_event_time_ns",
             call_without_gil([](std::uintptr_t event_id) { return event_time_ns(event_from(event_id)); }));
  module.def("_event_elapsed_ms", call_without_gil([](std::uintptr_t start, std::uintptr_t end) {
               return elapsed_ms(event_from(start), event_from(end));
             }));
}

}  // namespace npu::python
