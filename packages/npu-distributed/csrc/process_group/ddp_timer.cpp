// Times of forward, backward and communication that DistributedDataParallel logs, for npu devices.
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>

#include <array>
#include <optional>

#include "process_group/runtime_access.h"

namespace npu::distributed {
namespace {

class NpuTimer final : public c10d::Timer {
 public:
  explicit NpuTimer(c10::Device device) : device_(device.index()) {}

  void record(Event event) override {
    Timer::record(event);  // the host's time
    EventPtr& mark = marks_[static_cast<size_t>(event)];
    if (mark == nullptr) mark = MakeEvent();
    CheckRuntime(Runtime().event_record(mark.get(), Runtime().current_stream(device_)), "recording a DDP time");
  }

  std::optional<int64_t> measureDifference(Event start, Event end) override {
    const std::optional<uint64_t> begin = Time(start);
    const std::optional<uint64_t> finish = Time(end);
    if (!begin || !finish || *finish < *begin) return std::nullopt;
    return static_cast<int64_t>(*finish - *begin);
  }

 private:
  std::optional<uint64_t> Time(Event event) {
    const EventPtr& mark = marks_[static_cast<size_t>(event)];
    uint64_t nanoseconds = 0;
    if (mark == nullptr || Runtime().event_synchronize(mark.get(), -1) != NPU_OK ||
        Runtime().event_time(mark.get(), &nanoseconds) != NPU_OK) {
      return std::nullopt;
    }
    return nanoseconds;
  }

  const int device_;
  std::array<EventPtr, 5> marks_;
};

}  // namespace
}  // namespace npu::distributed

namespace c10d {

C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::kPrivateUse1, npu::distributed::NpuTimer)

}  // namespace c10d
