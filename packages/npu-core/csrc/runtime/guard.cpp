// torch's DeviceGuard for npu: how generic torch code switches devices and streams and handles events.
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "caching_allocator.h"
#include "device.h"
#include "event.h"
#include "stream.h"

namespace npu {
namespace {

constexpr c10::DeviceType kType = c10::DeviceType::PrivateUse1;

c10::Device as_device(int index) { return {kType, static_cast<c10::DeviceIndex>(index)}; }
c10::Stream as_stream(const Stream* s) { return c10::Stream(c10::Stream::UNSAFE, as_device(s->device), s->id); }
Stream* from(const c10::Stream& s) { return stream_from_id(s.device_index(), s.id()); }
Event* from(void* event) { return static_cast<Event*>(event); }

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  Guard() = default;
  explicit Guard(c10::DeviceType type) { TORCH_CHECK(type == kType, "Expected a npu device, but got: ", type); }

  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device device) const override { return as_device(exchange_device(device.index())); }
  c10::Device getDevice() const override { return as_device(current_device()); }
  // Does not initialise: autograd sets the device of its threads in CPU-only programs too.
  void setDevice(c10::Device device) const override { exchange_device(device.index()); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { unchecked_set_device(device.index()); }
  c10::DeviceIndex deviceCount() const noexcept override { return static_cast<c10::DeviceIndex>(device_count()); }
  void synchronizeDevice(c10::DeviceIndex device) const override {
    note_host_synchronization();
    synchronize_device(device);
  }

  c10::Stream getStream(c10::Device device) const override { return as_stream(current_stream(device.index())); }
  c10::Stream getDefaultStream(c10::Device device) const override { return as_stream(default_stream(device.index())); }
  c10::Stream getNewStream(c10::Device device, int priority) const override {
    return as_stream(stream_from_pool(device.index(), priority));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool high_priority) const override {
    return as_stream(stream_from_pool(device.index(), high_priority ? -1 : 0));
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const auto before = getStream(stream.device());
    set_current_stream(from(stream));
    return before;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override { return from(stream); }
  bool queryStream(const c10::Stream& stream) const override { return stream_query(from(stream)); }
  void synchronizeStream(const c10::Stream& stream) const override {
    synchronize_stream(from(stream), Wait::Interruptible);
  }
  bool isStreamCapturing(const c10::Stream& /*stream*/) const override { return false; }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex /*device*/,
              const c10::EventFlag flag) const override {
    if (*event == nullptr) *event = create_event(flag == c10::EventFlag::BACKEND_DEFAULT);
    record_event(from(*event), from(stream));
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event != nullptr) wait_event(from(event), from(stream));
  }
  bool queryEvent(void* event) const override { return event == nullptr || query_event(from(event)); }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) synchronize_event(from(event), Wait::Interruptible);
  }
  void destroyEvent(void* event, const c10::DeviceIndex /*device*/) const noexcept override {
    destroy_event(from(event));
  }
  double elapsedTime(void* start, void* end, const c10::DeviceIndex /*device*/) const override {
    TORCH_CHECK(start != nullptr && end != nullptr, "Both events must be recorded before calculating elapsed time.");
    return elapsed_ms(from(start), from(end));
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    caching_allocator().recordStream(data, stream);
  }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

}  // namespace
}  // namespace npu
