// Events: markers, waits across streams and devices, times, lifetime.
#include "suite.h"

namespace npu::conformance {
namespace {

void nothing() {}

}  // namespace

DRIVER_CASE(an_event_never_recorded_is_complete) {
  Event event;
  Stream stream;
  uint64_t time = 0;
  CHECK_OK(driver().event_query(event));
  CHECK_OK(driver().event_synchronize(event, 0));
  CHECK_EQUAL(driver().event_time(event, &time), NPU_ERROR_NOT_READY);
  CHECK_OK(driver().event_wait(event, stream));
  synchronize(stream);
}

DRIVER_CASE(an_event_completes_after_the_work_before_it) {
  Stream stream;
  for (npu_task_kind kind : {NPU_TASK_COMPUTE, NPU_TASK_COPY, NPU_TASK_BLOCKING}) {
    Event event;
    Gate gate;
    gate.hold(stream, kind);
    CHECK_OK(driver().event_record(event, stream));
    uint64_t time = 0;
    gate.await_entered();
    CHECK_EQUAL(driver().event_query(event), NPU_ERROR_NOT_READY);
    CHECK_EQUAL(driver().event_time(event, &time), NPU_ERROR_NOT_READY);
    CHECK_EQUAL(driver().event_synchronize(event, 10 * kMillisecond), NPU_ERROR_TIMEOUT);
    gate.open();
    CHECK_OK(driver().event_synchronize(event, kPatience));
    CHECK_OK(driver().event_query(event));
    CHECK_OK(driver().event_time(event, &time));
    CHECK(time <= driver().clock_ns());
  }
}

DRIVER_CASE(a_synchronized_stream_has_completed_its_events) {
  Stream stream;
  Event event;
  for (int i = 0; i < 2000 / kScale; ++i) {
    if (i % 3 != 0) submit(stream, NPU_TASK_COMPUTE, nothing);
    CHECK_OK(driver().event_record(event, stream));
    synchronize(stream);
    CHECK_OK(driver().event_query(event));
  }
}

DRIVER_CASE(event_times_measure_the_work_between) {
  Stream stream;
  Event begin, end;
  uint64_t before = driver().clock_ns();
  CHECK_OK(driver().event_record(begin, stream));
  submit(stream, NPU_TASK_COMPUTE, [] { sleep_ms(20); });
  CHECK_OK(driver().event_record(end, stream));
  synchronize(stream);
  uint64_t t0 = 0, t1 = 0;
  CHECK_OK(driver().event_time(begin, &t0));
  CHECK_OK(driver().event_time(end, &t1));
  CHECK(t0 >= before);
  CHECK(t1 >= t0 + 20 * kMillisecond);
  CHECK(t1 <= driver().clock_ns());
}

DRIVER_CASE(a_stream_waits_for_an_event_of_another_stream) {
  for (npu_task_kind kind : {NPU_TASK_COMPUTE, NPU_TASK_COPY, NPU_TASK_BLOCKING}) {
    Stream producing, consuming;
    Event event;
    Gate gate;
    std::atomic<int> value{0}, seen{-1};
    gate.hold(producing, NPU_TASK_BLOCKING);
    submit(producing, kind, [&value] { value = 1; });
    CHECK_OK(driver().event_record(event, producing));
    CHECK_OK(driver().event_wait(event, consuming));
    submit(consuming, kind, [&] { seen = value.load(); });
    sleep_ms(5);
    CHECK_EQUAL(seen.load(), -1);
    CHECK_EQUAL(driver().stream_query(consuming), NPU_ERROR_NOT_READY);
    gate.open();
    synchronize(consuming);
    CHECK_EQUAL(seen.load(), 1);
  }
}

DRIVER_CASE(a_stream_waits_for_an_event_of_another_device) {
  need_devices(2);
  Stream producing(0), consuming(1);
  Event event;
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> value{0}, seen{-1};
    submit(producing, NPU_TASK_COMPUTE, [&value] { value = 1; });
    CHECK_OK(driver().event_record(event, producing));
    CHECK_OK(driver().event_wait(event, consuming));
    submit(consuming, NPU_TASK_COMPUTE, [&] { seen = value.load(); });
    synchronize(consuming);
    CHECK_EQUAL(seen.load(), 1);
  }
}

DRIVER_CASE(a_wait_takes_the_marker_newest_at_the_call) {
  Stream producing, consuming;
  Event event;
  Gate first, second;
  std::atomic<bool> consumed{false};
  first.hold(producing, NPU_TASK_BLOCKING);
  CHECK_OK(driver().event_record(event, producing));
  CHECK_OK(driver().event_wait(event, consuming));
  submit(consuming, NPU_TASK_COMPUTE, [&consumed] { consumed = true; });
  second.hold(producing, NPU_TASK_BLOCKING);
  CHECK_OK(driver().event_record(event, producing));  // replaces the marker for later callers only
  first.open();
  synchronize(consuming);  // although the second marker is still pending
  CHECK(consumed);
  CHECK_EQUAL(driver().event_query(event), NPU_ERROR_NOT_READY);
  second.open();
  CHECK_OK(driver().event_synchronize(event, kPatience));
}

DRIVER_CASE(recording_again_makes_a_complete_event_pending) {
  Stream stream;
  Event event;
  CHECK_OK(driver().event_record(event, stream));
  CHECK_OK(driver().event_synchronize(event, kPatience));
  Gate gate;
  gate.hold(stream);
  CHECK_OK(driver().event_record(event, stream));
  CHECK_EQUAL(driver().event_query(event), NPU_ERROR_NOT_READY);
  gate.open();
  CHECK_OK(driver().event_synchronize(event, kPatience));
}

DRIVER_CASE(an_event_may_be_destroyed_while_streams_wait_for_it) {
  Stream producing, consuming;
  Gate gate;
  std::atomic<bool> consumed{false};
  gate.hold(producing, NPU_TASK_BLOCKING);
  {
    Event event;
    CHECK_OK(driver().event_record(event, producing));
    CHECK_OK(driver().event_wait(event, consuming));
    submit(consuming, NPU_TASK_COMPUTE, [&consumed] { consumed = true; });
    CHECK_OK(driver().event_destroy(event.release()));
  }
  sleep_ms(5);
  CHECK(!consumed);
  gate.open();
  synchronize(consuming);
  CHECK(consumed);
}

DRIVER_CASE(an_event_outlives_its_stream) {
  Event event;
  uint64_t time = 0;
  {
    Stream stream;
    submit(stream, NPU_TASK_COMPUTE, nothing);
    CHECK_OK(driver().event_record(event, stream));
  }
  Stream other;
  CHECK_OK(driver().event_query(event));
  CHECK_OK(driver().event_wait(event, other));
  CHECK_OK(driver().event_time(event, &time));
  synchronize(other);
}

DRIVER_CASE(many_streams_wait_for_one_event) {
  Stream producing;
  Event event;
  Gate gate;
  gate.hold(producing, NPU_TASK_BLOCKING);
  CHECK_OK(driver().event_record(event, producing));
  std::atomic<int> ran{0};
  std::vector<Stream> streams;
  for (int i = 0; i < 64; ++i) {
    streams.emplace_back(0);
    CHECK_OK(driver().event_wait(event, streams.back()));
    submit(streams.back(), i % 8 == 0 ? NPU_TASK_BLOCKING : NPU_TASK_COMPUTE, [&ran] { ++ran; });
  }
  CHECK_EQUAL(ran.load(), 0);
  gate.open();
  for (auto& stream : streams) synchronize(stream);
  CHECK_EQUAL(ran.load(), 64);
}

DRIVER_CASE(a_long_chain_of_waiting_streams_resolves) {
  const int length = 1000 / kScale;
  Gate gate;
  std::vector<Stream> streams;
  std::vector<Event> events(static_cast<size_t>(length));
  std::atomic<int> last{0};
  streams.emplace_back(0);
  gate.hold(streams[0], NPU_TASK_BLOCKING);
  for (int i = 1; i < length; ++i) {
    CHECK_OK(driver().event_record(events[static_cast<size_t>(i)], streams.back()));
    streams.emplace_back(0);
    CHECK_OK(driver().event_wait(events[static_cast<size_t>(i)], streams.back()));
  }
  submit(streams.back(), NPU_TASK_COMPUTE, [&last] { last = 1; });
  sleep_ms(5);
  CHECK_EQUAL(last.load(), 0);
  gate.open();
  synchronize(streams.back());
  CHECK_EQUAL(last.load(), 1);
}

DRIVER_CASE(two_streams_take_turns_through_events) {
  Stream first, second;
  Event first_done, second_done;
  std::vector<int> order;
  const int rounds = 2000 / kScale;
  for (int i = 0; i < rounds; ++i) {
    CHECK_OK(driver().event_wait(second_done, first));
    submit(first, NPU_TASK_COMPUTE, [&order, i] { order.push_back(2 * i); });
    CHECK_OK(driver().event_record(first_done, first));
    CHECK_OK(driver().event_wait(first_done, second));
    submit(second, i % 10 == 0 ? NPU_TASK_BLOCKING : NPU_TASK_COMPUTE, [&order, i] { order.push_back(2 * i + 1); });
    CHECK_OK(driver().event_record(second_done, second));
  }
  synchronize(first);
  synchronize(second);
  CHECK_EQUAL(order.size(), 2 * rounds);
  for (size_t i = 0; i < order.size(); ++i) CHECK_EQUAL(order[i], i);
}

DRIVER_CASE(many_threads_wait_for_one_event) {
  Stream stream;
  Event event;
  Gate gate;
  gate.hold(stream);
  CHECK_OK(driver().event_record(event, stream));
  std::atomic<int> woken{0}, failed{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      npu_status status = i % 2 == 0 ? driver().event_synchronize(event, -1) : driver().stream_synchronize(stream, -1);
      if (status != NPU_OK) ++failed;
      ++woken;
    });
  }
  sleep_ms(20);
  CHECK_EQUAL(woken.load(), 0);
  gate.open();
  for (auto& thread : threads) thread.join();
  CHECK_EQUAL(woken.load(), 8);
  CHECK_EQUAL(failed.load(), 0);
}

DRIVER_CASE(one_event_used_by_many_threads) {
  Event event;
  std::atomic<int> failed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      Stream stream;
      for (int i = 0; i < 2000 / kScale; ++i) {
        npu_status status = NPU_OK;
        switch ((i + t) % 4) {
          case 0:
            status = driver().event_record(event, stream);
            break;
          case 1:
            status = driver().event_wait(event, stream);
            break;
          case 2:
            status = driver().event_synchronize(event, kPatience);
            break;
          default:
            submit(stream, NPU_TASK_COMPUTE, nothing);
        }
        if (status != NPU_OK) ++failed;
      }
      driver().stream_synchronize(stream, kPatience);
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK_EQUAL(failed.load(), 0);
}

}  // namespace npu::conformance
