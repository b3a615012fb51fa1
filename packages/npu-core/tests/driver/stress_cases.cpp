// Random programs over streams, devices and events, checked against what their order promises.
#include <cstdlib>
#include <memory>
#include <random>

#include "suite.h"

namespace npu::conformance {
namespace {

unsigned seed() {
  const char* chosen = getenv("NPU_DRIVER_TEST_SEED");
  unsigned value = chosen != nullptr ? static_cast<unsigned>(strtoul(chosen, nullptr, 10)) : std::random_device{}();
  printf("seed %u (NPU_DRIVER_TEST_SEED repeats it)\n", value);
  fflush(stdout);  // also when the case is killed
  return value;
}

// A stream and how far it has come.  `ran` counts its tasks; a task checks that it is the next one and that every
// stream its own has waited for had come far enough.
struct Lane {
  Lane(int device, int priority) : memory(kLaneBytes, device), stream(device, priority) {}
  static constexpr size_t kLaneBytes = 2 << 20;
  DeviceMemory memory;  // written by this lane only; outlives the stream
  Stream stream;
  int submitted = 0;
  std::atomic<int> ran{0};
};

struct Promise {
  Lane* lane;
  int at_least;
};

struct Recorded {
  Event event;
  Lane* lane = nullptr;
  int position = 0;
};

}  // namespace

DRIVER_CASE(random_programs_keep_their_promises) {
  std::mt19937 random(seed());
  int32_t devices = 0;
  CHECK_OK(driver().device_count(&devices));
  std::atomic<int> broken{0};
  for (int program = 0; program < 30 / kScale + 1; ++program) {
    std::vector<std::unique_ptr<Lane>> lanes;
    for (int i = 0, count = 2 + static_cast<int>(random() % 6); i < count; ++i) {
      lanes.push_back(
          std::make_unique<Lane>(static_cast<int>(random()) & 1 ? devices - 1 : 0, static_cast<int>(random() % 3) - 1));
    }
    std::vector<Recorded> events(4);
    for (int step = 0; step < 3000; ++step) {
      Lane& lane = *lanes[random() % lanes.size()];
      Recorded& event = events[random() % events.size()];
      unsigned choice = random() % 100;
      if (choice < 60) {
        npu_task_kind kind = choice < 50 ? NPU_TASK_COMPUTE : choice < 55 ? NPU_TASK_COPY : NPU_TASK_BLOCKING;
        int position = lane.submitted++;
        Lane* own = &lane;
        submit(lane.stream, kind, [own, position, &broken] {
          if (own->ran.load(std::memory_order_relaxed) != position) ++broken;
          own->ran.store(position + 1, std::memory_order_relaxed);
        });
      } else if (choice < 75) {
        CHECK_OK(driver().event_record(event.event, lane.stream));
        event.lane = &lane;
        event.position = lane.submitted;
      } else if (choice < 90) {
        CHECK_OK(driver().event_wait(event.event, lane.stream));
        if (event.lane != nullptr) {
          Promise promise{event.lane, event.position};
          int position = lane.submitted++;
          Lane* own = &lane;
          submit(lane.stream, random() % 2 == 0 ? NPU_TASK_COMPUTE : NPU_TASK_BLOCKING,
                 [own, position, promise, &broken] {
                   if (promise.lane->ran.load(std::memory_order_relaxed) < promise.at_least) ++broken;
                   if (own->ran.load(std::memory_order_relaxed) != position) ++broken;
                   own->ran.store(position + 1, std::memory_order_relaxed);
                 });
        }
      } else if (choice < 94) {
        CHECK_OK(driver().memory_set(lane.stream, lane.memory.address, 1, random() % 2 == 0 ? 64 : Lane::kLaneBytes));
      } else if (choice < 97) {
        synchronize(lane.stream);
        CHECK_EQUAL(lane.ran.load(), lane.submitted);
      } else if (choice < 99) {
        CHECK_OK(driver().event_synchronize(event.event, kPatience));
        if (event.lane != nullptr) CHECK(event.lane->ran >= event.position);
      } else if (random() % 4 == 0) {
        sleep_ms(1);  // long enough for the engines to fall asleep
      }
    }
    for (auto& lane : lanes) {
      synchronize(lane->stream);
      CHECK_EQUAL(lane->ran.load(), lane->submitted);
    }
    CHECK_EQUAL(broken.load(), 0);
  }
}

DRIVER_CASE(random_threads_share_everything) {
  unsigned base = seed();
  int32_t devices = 0;
  CHECK_OK(driver().device_count(&devices));
  std::vector<std::unique_ptr<Lane>> lanes;
  for (int i = 0; i < 5; ++i) lanes.push_back(std::make_unique<Lane>(i % devices, i % 3 - 1));
  std::vector<Event> events(3);
  std::atomic<int> failed{0}, submitted{0}, ran{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(base + t);
      for (int step = 0; step < 4000 / kScale; ++step) {
        Stream& stream = lanes[random() % lanes.size()]->stream;
        Event& event = events[random() % events.size()];
        npu_status status = NPU_OK;
        unsigned choice = random() % 100;
        if (choice < 60) {
          ++submitted;
          submit(stream, static_cast<npu_task_kind>(choice < 52 ? 0 : choice % 3), [&ran] { ++ran; });
        } else if (choice < 72) {
          status = driver().event_record(event, stream);
        } else if (choice < 84) {
          status = driver().event_wait(event, stream);
        } else if (choice < 88) {
          status = driver().stream_synchronize(stream, kPatience);
        } else if (choice < 92) {
          status = driver().event_synchronize(event, kPatience);
        } else if (choice < 94) {
          Stream own(0, static_cast<int>(random() % 3) - 1);
          ++submitted;
          submit(own, static_cast<npu_task_kind>(random() % 3), [&ran] { ++ran; });
          status = driver().event_wait(event, own);
        } else {
          driver().stream_query(stream);
          driver().event_query(event);
        }
        if (status != NPU_OK) ++failed;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (auto& lane : lanes) synchronize(lane->stream);
  CHECK_EQUAL(failed.load(), 0);
  CHECK_EQUAL(ran.load(), submitted.load());
}

DRIVER_CASE(sleep_and_wake_loses_no_task) {
  // One task at a time with pauses around the time an idle engine spins: the window between its last look and its
  // sleep.
  std::mt19937 random(seed());
  Stream first, second;
  std::atomic<int> ran{0};
  const int count = 6000 / kScale;
  for (int i = 0; i < count; ++i) {
    Stream& stream = random() % 4 == 0 ? second : first;
    submit(stream, static_cast<npu_task_kind>(random() % 16 == 0 ? random() % 3 : 0), [&ran] { ++ran; });
    if (random() % 2 == 0) {
      uint64_t until = driver().clock_ns() + random() % 200'000;
      while (driver().clock_ns() < until) {
      }
    }
    synchronize(stream);
  }
  CHECK_EQUAL(ran.load(), count);
}

}  // namespace npu::conformance
