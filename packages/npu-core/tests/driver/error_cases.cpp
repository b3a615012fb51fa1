// Errors that stick to a stream, and injected faults.
#include <cstring>

#include "suite.h"

namespace npu::conformance {
namespace {

npu_status failing(npu_error* error, npu_status status, const char* text) {
  snprintf(error->message, sizeof(error->message), "%s", text);
  return status;
}

Body fails_with(npu_status status, const char* text) {
  return [status, text](npu_error* error) { return failing(error, status, text); };
}

// Every case leaves the driver without faults.
struct Faults {
  explicit Faults(int device = 0) : device(device) {}
  ~Faults() { clear(); }
  void inject(npu_fault_kind kind, int64_t count, const char* match, npu_status status = NPU_OK, uint64_t delay = 0) {
    npu_fault fault{};
    fault.kind = kind;
    fault.count = count;
    fault.status = status;
    fault.delay_ns = delay;
    snprintf(fault.match, sizeof(fault.match), "%s", match);
    npu_status result = driver().inject_fault(device, &fault);
    if (result == NPU_ERROR_NOT_SUPPORTED) throw Skip("the driver injects no faults");
    CHECK_OK(result);
  }
  void clear() {
    npu_fault none{};
    driver().inject_fault(device, &none);
  }
  int device;
};

}  // namespace

DRIVER_CASE(a_failure_sticks_until_it_is_taken) {
  Stream stream;
  std::atomic<int> ran{0};
  submit(stream, NPU_TASK_COMPUTE, [&ran] { ++ran; });
  submit(stream, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_INDEX, "index 9 is out of range"), "aten::first");
  submit(stream, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_TYPE, "a consequence"), "aten::second");
  submit(stream, NPU_TASK_COMPUTE, [&ran] { ++ran; }, "aten::third");
  CHECK_EQUAL(driver().stream_synchronize(stream, kPatience), NPU_ERROR_TASK_FAILED);
  CHECK(strstr(driver().last_error(), "aten::first") != nullptr);
  CHECK(strstr(driver().last_error(), "index 9") != nullptr);
  CHECK_EQUAL(driver().stream_synchronize(stream, kPatience), NPU_ERROR_TASK_FAILED);  // not taken yet
  CHECK_OK(driver().stream_query(stream));                                             // does not report errors
  CHECK_EQUAL(ran.load(), 1);
  submit(stream, NPU_TASK_COMPUTE, [&ran] { ++ran; });  // accepted and dropped
  CHECK_EQUAL(driver().stream_synchronize(stream, kPatience), NPU_ERROR_TASK_FAILED);
  npu_error error{};
  CHECK_EQUAL(driver().stream_take_error(stream, &error), NPU_ERROR_INDEX);
  CHECK_EQUAL(error.status, NPU_ERROR_INDEX);
  CHECK_EQUAL(std::string(error.op), "aten::first");
  CHECK_EQUAL(std::string(error.message), "index 9 is out of range");
  CHECK_OK(driver().stream_take_error(stream, &error));
  CHECK_EQUAL(error.status, NPU_OK);
  submit(stream, NPU_TASK_COMPUTE, [&ran] { ++ran; });
  synchronize(stream);
  CHECK_EQUAL(ran.load(), 2);
}

DRIVER_CASE(every_kind_of_task_can_fail_with_every_status) {
  Stream stream;
  for (npu_task_kind kind : {NPU_TASK_COMPUTE, NPU_TASK_COPY, NPU_TASK_BLOCKING}) {
    for (npu_status status : {NPU_ERROR_INVALID_ARGUMENT, NPU_ERROR_OUT_OF_MEMORY, NPU_ERROR_NOT_SUPPORTED,
                              NPU_ERROR_TASK_FAILED, NPU_ERROR_INDEX, NPU_ERROR_TYPE, NPU_ERROR_SYSTEM}) {
      submit(stream, kind, fails_with(status, "text"), "test::failing");
      CHECK_EQUAL(driver().stream_synchronize(stream, kPatience), NPU_ERROR_TASK_FAILED);
      npu_error error{};
      CHECK_EQUAL(driver().stream_take_error(stream, &error), status);
      CHECK_EQUAL(std::string(error.message), "text");
    }
  }
}

DRIVER_CASE(a_failure_without_a_message_has_no_stale_one) {
  Stream stream;
  npu_error error{};
  submit(stream, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_TYPE, "an older text"));
  CHECK_EQUAL(driver().stream_synchronize(stream, kPatience), NPU_ERROR_TASK_FAILED);
  CHECK_EQUAL(driver().stream_take_error(stream, &error), NPU_ERROR_TYPE);
  submit(stream, NPU_TASK_COMPUTE, Body([](npu_error*) { return NPU_ERROR_INDEX; }));
  CHECK_EQUAL(driver().stream_synchronize(stream, kPatience), NPU_ERROR_TASK_FAILED);
  CHECK_EQUAL(driver().stream_take_error(stream, &error), NPU_ERROR_INDEX);
  CHECK(strlen(error.message) > 0);
  CHECK(strstr(error.message, "older") == nullptr);
}

DRIVER_CASE(dropped_tasks_are_destroyed_exactly_once) {
  Stream stream;
  static std::atomic<int> ran, destroyed;
  ran = destroyed = 0;
  submit(stream, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_TYPE, "stop"));
  const int count = 3000;
  for (int i = 0; i < count; ++i) {
    std::vector<char> payload(static_cast<size_t>(i % 700 + 1), 'x');
    npu_task task{};
    task.run = [](void*, npu_error*) {
      ++ran;
      return NPU_OK;
    };
    task.destroy = [](void*) { ++destroyed; };
    task.payload = payload.data();
    task.payload_size = static_cast<uint32_t>(payload.size());
    task.kind = static_cast<uint16_t>(i % 97 == 0 ? NPU_TASK_BLOCKING : NPU_TASK_COMPUTE);
    CHECK_OK(driver().stream_submit(stream, &task));
  }
  CHECK_EQUAL(driver().stream_synchronize(stream, kPatience), NPU_ERROR_TASK_FAILED);
  CHECK_EQUAL(ran.load(), 0);
  CHECK_EQUAL(destroyed.load(), count);
}

DRIVER_CASE(tasks_marked_always_run_on_a_failed_stream) {
  Stream stream;
  std::atomic<int> ran{0};
  submit(stream, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_TYPE, "the cause"));
  for (npu_task_kind kind : {NPU_TASK_COMPUTE, NPU_TASK_COPY, NPU_TASK_BLOCKING}) {
    submit(stream, kind, [&ran] { ++ran; }, "test::always", NPU_TASK_ALWAYS);
    submit(stream, kind, [&ran] { ran += 100; });
  }
  submit(stream, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_INDEX, "later"), "test::always", NPU_TASK_ALWAYS);
  CHECK_EQUAL(driver().stream_synchronize(stream, kPatience), NPU_ERROR_TASK_FAILED);
  CHECK_EQUAL(ran.load(), 3);
  npu_error error{};
  CHECK_EQUAL(driver().stream_take_error(stream, &error), NPU_ERROR_TYPE);  // the first failure is kept
  CHECK_EQUAL(std::string(error.message), "the cause");
}

DRIVER_CASE(events_complete_on_a_failed_stream) {
  Stream failed, other;
  Event event, received;
  std::atomic<bool> ran{false};
  Gate gate;
  submit(failed, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_TYPE, "stop"));
  gate.hold(other, NPU_TASK_BLOCKING);
  CHECK_OK(driver().event_record(received, other));
  CHECK_OK(driver().event_wait(received, failed));  // a failed stream still waits
  CHECK_OK(driver().event_record(event, failed));
  CHECK_OK(driver().event_wait(event, other));
  submit(other, NPU_TASK_COMPUTE, [&ran] { ran = true; });
  sleep_ms(5);
  CHECK_EQUAL(driver().event_query(event), NPU_ERROR_NOT_READY);
  gate.open();
  CHECK_OK(driver().event_synchronize(event, kPatience));
  // The failure reaches the stream that waited: its work would use what was never written.
  CHECK_EQUAL(driver().stream_synchronize(other, kPatience), NPU_ERROR_TASK_FAILED);
  CHECK(!ran);
  CHECK_EQUAL(driver().stream_synchronize(failed, kPatience), NPU_ERROR_TASK_FAILED);
}

DRIVER_CASE(a_failure_spreads_along_events) {
  need_devices(2);
  Stream first(0), second(1), third(0);
  Event event, onward;
  std::atomic<int> ran{0};
  Gate gate;
  gate.hold(first);
  submit(first, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_INDEX, "index 9 is out of range"), "aten::cause");
  CHECK_OK(driver().event_record(event, first));
  CHECK_OK(driver().event_wait(event, second));
  submit(second, NPU_TASK_COPY, [&ran] { ++ran; });
  CHECK_OK(driver().event_record(onward, second));
  CHECK_OK(driver().event_wait(onward, third));
  submit(third, NPU_TASK_BLOCKING, [&ran] { ++ran; });
  gate.open();
  npu_error error{};
  for (Stream* stream : {&first, &second, &third}) {  // upstream first: each stream tells of what it dropped
    CHECK_EQUAL(driver().stream_synchronize(*stream, kPatience), NPU_ERROR_TASK_FAILED);
    CHECK_EQUAL(driver().stream_take_error(*stream, &error), NPU_ERROR_INDEX);
    CHECK_EQUAL(std::string(error.op), "aten::cause");
    CHECK_EQUAL(std::string(error.message), "index 9 is out of range");
  }
  CHECK_EQUAL(ran.load(), 0);
  // Everybody knows: waiting for the old events is harmless, and all streams work.
  CHECK_OK(driver().event_wait(event, second));
  CHECK_OK(driver().event_wait(onward, third));
  for (Stream* stream : {&first, &second, &third}) {
    submit(*stream, NPU_TASK_COMPUTE, [&ran] { ++ran; });
    synchronize(*stream);
  }
  CHECK_EQUAL(ran.load(), 3);
}

DRIVER_CASE(a_complete_event_still_carries_its_failure) {
  Stream failed, late;
  Event event;
  std::atomic<bool> ran{false};
  submit(failed, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_TYPE, "the cause"));
  CHECK_OK(driver().event_record(event, failed));
  CHECK_OK(driver().event_synchronize(event, kPatience));
  CHECK_OK(driver().event_wait(event, late));
  submit(late, NPU_TASK_COMPUTE, [&ran] { ran = true; });
  CHECK_EQUAL(driver().stream_synchronize(late, kPatience), NPU_ERROR_TASK_FAILED);
  CHECK(!ran);
}

DRIVER_CASE(an_error_taken_downstream_is_taken_upstream) {
  Stream first, second;
  Event event;
  std::atomic<int> ran{0};
  npu_error error{};
  for (int round = 0; round < 20; ++round) {
    submit(first, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_TYPE, "the cause"));
    CHECK_OK(driver().event_record(event, first));
    CHECK_OK(driver().event_wait(event, second));
    CHECK_EQUAL(driver().stream_synchronize(second, kPatience), NPU_ERROR_TASK_FAILED);
    CHECK_EQUAL(driver().stream_take_error(second, &error), NPU_ERROR_TYPE);
    // Nobody ever synchronises `first`; it works again nevertheless.
    submit(first, NPU_TASK_COMPUTE, [&ran] { ++ran; });
    CHECK_OK(driver().event_record(event, first));
    CHECK_OK(driver().event_wait(event, second));
    submit(second, NPU_TASK_COMPUTE, [&ran] { ++ran; });
    synchronize(second);
    CHECK_EQUAL(ran.load(), 2 * round + 2);
  }
  synchronize(first);
  CHECK_OK(driver().stream_take_error(first, &error));
}

DRIVER_CASE(an_event_before_the_failure_is_a_good_one) {
  Stream first, second;
  Event event;
  std::atomic<bool> ran{false};
  Gate gate;
  gate.hold(first);
  CHECK_OK(driver().event_record(event, first));
  submit(first, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_TYPE, "later"));
  CHECK_OK(driver().event_wait(event, second));
  submit(second, NPU_TASK_COMPUTE, [&ran] { ran = true; });
  gate.open();
  synchronize(second);
  CHECK(ran);
  CHECK_EQUAL(driver().stream_synchronize(first, kPatience), NPU_ERROR_TASK_FAILED);
}

DRIVER_CASE(a_ticket_stands_for_what_was_submitted_before_it) {
  Stream stream;
  Gate first, second;
  uint64_t ticket = 0;
  first.hold(stream);
  CHECK_OK(driver().stream_ticket(stream, &ticket));
  second.hold(stream);
  CHECK_EQUAL(driver().stream_wait(stream, ticket, kMillisecond), NPU_ERROR_TIMEOUT);
  first.open();
  CHECK_OK(driver().stream_wait(stream, ticket, kPatience));
  CHECK_EQUAL(driver().stream_query(stream), NPU_ERROR_NOT_READY);
  second.open();
  synchronize(stream);
  CHECK_EQUAL(driver().stream_wait(stream, ticket + 1000, 0), NPU_ERROR_INVALID_ARGUMENT);
  submit(stream, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_TYPE, "the cause"));
  CHECK_OK(driver().stream_ticket(stream, &ticket));
  CHECK_EQUAL(driver().stream_wait(stream, ticket, kPatience), NPU_ERROR_TASK_FAILED);
}

DRIVER_CASE(a_stopped_stream_drops_its_work_and_refuses_more) {
  static std::atomic<int> destroyed;
  destroyed = 0;
  Stream stream, other;
  Event event, recorded;
  DeviceMemory memory(64);
  std::atomic<int> ran{0};
  Gate gate;
  gate.hold(stream);
  gate.await_entered();
  npu_task task{};
  task.run = [](void*, npu_error*) { return NPU_OK; };
  task.destroy = [](void*) { ++destroyed; };
  CHECK_OK(driver().stream_submit(stream, &task));
  submit(stream, NPU_TASK_COMPUTE, [&ran] { ran += 100; });
  submit(stream, NPU_TASK_COMPUTE, [&ran] { ++ran; }, "test::always", NPU_TASK_ALWAYS);
  CHECK_OK(driver().event_record(recorded, stream));
  CHECK_OK(driver().stream_stop(stream, "HALT because of a test"));
  CHECK_OK(driver().stream_stop(stream, "a second reason"));
  for (npu_status status :
       {driver().stream_submit(stream, &task), driver().event_record(event, stream),
        driver().event_wait(recorded, stream), driver().memory_set(stream, memory.address, 1, 64)}) {
    CHECK_EQUAL(status, NPU_ERROR_STOPPED);
    CHECK_EQUAL(std::string(driver().last_error()), "HALT because of a test");
  }
  CHECK_EQUAL(driver().stream_synchronize(stream, kMillisecond), NPU_ERROR_TIMEOUT);  // the running task runs on
  gate.open();
  CHECK_EQUAL(driver().stream_synchronize(stream, kPatience), NPU_ERROR_STOPPED);
  CHECK_EQUAL(ran.load(), 1);
  CHECK_EQUAL(destroyed.load(), 1);
  CHECK_OK(driver().event_query(recorded));
  npu_error error{};
  CHECK_EQUAL(driver().stream_take_error(stream, &error), NPU_ERROR_STOPPED);  // and stays
  CHECK_EQUAL(driver().stream_take_error(stream, &error), NPU_ERROR_STOPPED);
  submit(other, NPU_TASK_COMPUTE, [&ran] { ++ran; });  // other streams are not concerned
  synchronize(other);
  CHECK_OK(driver().stream_resume(stream));
  CHECK_OK(driver().stream_resume(stream));
  CHECK_OK(driver().event_wait(recorded, other));  // the old event spreads nothing any more
  submit(other, NPU_TASK_COMPUTE, [&ran] { ++ran; });
  submit(stream, NPU_TASK_COMPUTE, [&ran] { ++ran; });
  synchronize(other);
  synchronize(stream);
  CHECK_EQUAL(ran.load(), 4);
}

DRIVER_CASE(stopping_ends_a_wait_for_an_event) {
  Stream source, waiting;
  Event event;
  std::atomic<int> ran{0};
  for (int round = 0; round < 50; ++round) {
    Gate gate;
    gate.hold(source, NPU_TASK_BLOCKING);
    CHECK_OK(driver().event_record(event, source));
    CHECK_OK(driver().event_wait(event, waiting));
    submit(waiting, NPU_TASK_COMPUTE, [&ran] { ran += 1000; });
    if (round % 2 == 0) gate.await_entered();
    CHECK_OK(driver().stream_stop(waiting, "HALT"));
    CHECK_EQUAL(driver().stream_synchronize(waiting, kPatience), NPU_ERROR_STOPPED);
    CHECK_EQUAL(driver().event_query(event), NPU_ERROR_NOT_READY);
    CHECK_OK(driver().stream_resume(waiting));
    submit(waiting, NPU_TASK_COMPUTE, [&ran] { ++ran; });
    synchronize(waiting);
    CHECK_EQUAL(ran.load(), round + 1);
    gate.open();
    synchronize(source);
  }
}

DRIVER_CASE(stopping_while_others_submit_and_complete_events) {
  Stream streams[3];
  Event events[3];
  std::atomic<bool> done{false};
  std::atomic<int> submitted{0}, destroyed_or_ran{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; !done; ++i) {
        npu_task task{};
        auto* counter = &destroyed_or_ran;
        task.payload = &counter;
        task.payload_size = sizeof(counter);
        task.run = [](void*, npu_error*) { return NPU_OK; };
        task.destroy = [](void* payload) { ++**static_cast<std::atomic<int>**>(payload); };
        if (driver().stream_submit(streams[t], &task) == NPU_OK) ++submitted;
        driver().event_record(events[t], streams[t]);
        driver().event_wait(events[(t + i) % 3], streams[t]);
      }
    });
  }
  for (int round = 0; round < 400 / kScale; ++round) {
    Stream& stream = streams[round % 3];
    CHECK_OK(driver().stream_stop(stream, "HALT"));
    CHECK_OK(driver().stream_resume(stream));
  }
  done = true;
  for (auto& thread : threads) thread.join();
  for (Stream& stream : streams) {
    CHECK_OK(driver().stream_resume(stream));  // also takes what came from a stopped one
    synchronize(stream);
  }
  CHECK_EQUAL(destroyed_or_ran.load(), submitted.load());
}

DRIVER_CASE(streams_fail_on_their_own) {
  need_devices(2);
  Stream first(0), second(0), third(1);
  submit(first, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_TYPE, "only here"));
  CHECK_EQUAL(driver().stream_synchronize(first, kPatience), NPU_ERROR_TASK_FAILED);
  for (auto* stream : {&second, &third}) {
    std::atomic<bool> ran{false};
    submit(*stream, NPU_TASK_COMPUTE, [&ran] { ran = true; });
    synchronize(*stream);
    CHECK(ran);
  }
}

DRIVER_CASE(one_caller_gets_a_given_error) {
  Stream stream;
  for (int round = 0; round < 100 / kScale; ++round) {
    submit(stream, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_TYPE, "once"));
    driver().stream_synchronize(stream, kPatience);
    std::atomic<int> taken{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        npu_error error{};
        if (driver().stream_take_error(stream, &error) != NPU_OK) ++taken;
      });
    }
    for (auto& thread : threads) thread.join();
    CHECK_EQUAL(taken.load(), 1);
  }
}

DRIVER_CASE(last_error_belongs_to_the_calling_thread) {
  CHECK_EQUAL(driver().stream_query(nullptr), NPU_ERROR_INVALID_ARGUMENT);
  std::string mine = driver().last_error();
  CHECK(!mine.empty());
  std::string theirs = "unset";
  std::thread([&theirs] { theirs = driver().last_error(); }).join();
  CHECK_EQUAL(theirs, "");
  CHECK_EQUAL(std::string(driver().last_error()), mine);
}

DRIVER_CASE(a_failed_stream_may_be_destroyed) {
  static std::atomic<int> destroyed;
  destroyed = 0;
  {
    Stream stream;
    submit(stream, NPU_TASK_COMPUTE, fails_with(NPU_ERROR_TYPE, "unread"));
    npu_task task{};
    task.run = [](void*, npu_error*) { return NPU_OK; };
    task.destroy = [](void*) { ++destroyed; };
    CHECK_OK(driver().stream_submit(stream, &task));
    CHECK_OK(driver().stream_destroy(stream.release()));
  }
  CHECK_EQUAL(destroyed.load(), 1);
}

DRIVER_CASE(an_exception_does_not_end_the_engine) {
  if (!driver_is_host()) throw Skip("the contract forbids tasks to throw; the host driver survives it");
  Stream stream;
  for (npu_task_kind kind : {NPU_TASK_COMPUTE, NPU_TASK_COPY, NPU_TASK_BLOCKING}) {
    submit(stream, kind, Body([](npu_error*) -> npu_status { throw std::runtime_error("thrown text"); }),
           "test::throws");
    CHECK_EQUAL(driver().stream_synchronize(stream, kPatience), NPU_ERROR_TASK_FAILED);
    npu_error error{};
    CHECK_EQUAL(driver().stream_take_error(stream, &error), NPU_ERROR_TASK_FAILED);
    CHECK_EQUAL(std::string(error.message), "thrown text");
    CHECK_EQUAL(std::string(error.op), "test::throws");
  }
}

DRIVER_CASE(injected_failures_strike_matching_tasks) {
  Faults faults;
  Stream stream;
  std::atomic<int> ran{0};
  faults.inject(NPU_FAULT_FAIL_TASK, 2, "matmul", NPU_ERROR_OUT_OF_MEMORY);
  submit(stream, NPU_TASK_COMPUTE, [&ran] { ++ran; }, "aten::add");
  synchronize(stream);
  for (int strike = 0; strike < 2; ++strike) {
    submit(stream, NPU_TASK_COMPUTE, [&ran] { ++ran; }, "aten::matmul.out");
    CHECK_EQUAL(driver().stream_synchronize(stream, kPatience), NPU_ERROR_TASK_FAILED);
    npu_error error{};
    CHECK_EQUAL(driver().stream_take_error(stream, &error), NPU_ERROR_OUT_OF_MEMORY);
    CHECK_EQUAL(std::string(error.op), "aten::matmul.out");
  }
  submit(stream, NPU_TASK_COMPUTE, [&ran] { ++ran; }, "aten::matmul.out");  // the faults are used up
  synchronize(stream);
  CHECK_EQUAL(ran.load(), 2);
  faults.inject(NPU_FAULT_FAIL_TASK, -1, "", NPU_ERROR_SYSTEM);
  for (int i = 0; i < 5; ++i) {
    submit(stream, NPU_TASK_COMPUTE, [&ran] { ++ran; });
    npu_error error{};
    CHECK_EQUAL(driver().stream_synchronize(stream, kPatience), NPU_ERROR_TASK_FAILED);
    CHECK_EQUAL(driver().stream_take_error(stream, &error), NPU_ERROR_SYSTEM);
  }
  faults.clear();
  submit(stream, NPU_TASK_COMPUTE, [&ran] { ++ran; });
  synchronize(stream);
  CHECK_EQUAL(ran.load(), 3);
}

DRIVER_CASE(injected_faults_stay_on_their_device) {
  need_devices(2);
  Faults faults(1);
  Stream first(0), second(1);
  faults.inject(NPU_FAULT_FAIL_TASK, -1, "", NPU_ERROR_SYSTEM);
  submit(first, NPU_TASK_COMPUTE, [] {});
  synchronize(first);
  submit(second, NPU_TASK_COMPUTE, [] {});
  CHECK_EQUAL(driver().stream_synchronize(second, kPatience), NPU_ERROR_TASK_FAILED);
}

DRIVER_CASE(injected_failures_strike_copies) {
  Faults faults;
  Stream stream;
  DeviceMemory memory(4096);
  faults.inject(NPU_FAULT_FAIL_TASK, 1, "memory_set", NPU_ERROR_SYSTEM);
  CHECK_OK(driver().memory_set(stream, memory.address, 1, 64));
  CHECK_EQUAL(driver().stream_synchronize(stream, kPatience), NPU_ERROR_TASK_FAILED);
  CHECK_EQUAL(static_cast<int>(memory.data()[0]), 0);
}

DRIVER_CASE(injected_delays_keep_the_order) {
  Faults faults;
  Stream stream;
  std::vector<int> order;
  faults.inject(NPU_FAULT_DELAY_TASK, 1, "slow", NPU_OK, 30 * kMillisecond);
  uint64_t begin = driver().clock_ns();
  submit(stream, NPU_TASK_COMPUTE, [&order] { order.push_back(1); }, "test::slow");
  submit(stream, NPU_TASK_COMPUTE, [&order] { order.push_back(2); }, "test::fast");
  CHECK_EQUAL(driver().stream_query(stream), NPU_ERROR_NOT_READY);
  synchronize(stream);
  CHECK(driver().clock_ns() - begin >= 30 * kMillisecond);
  CHECK(order == (std::vector<int>{1, 2}));
}

DRIVER_CASE(removing_the_faults_ends_a_delay) {
  Faults faults;
  Stream stream;
  std::atomic<bool> ran{false};
  faults.inject(NPU_FAULT_DELAY_TASK, 1, "held", NPU_OK, uint64_t{3600} * 1'000'000'000);
  submit(stream, NPU_TASK_COMPUTE, [&ran] { ran = true; }, "test::held");
  CHECK_EQUAL(driver().stream_synchronize(stream, 20 * kMillisecond), NPU_ERROR_TIMEOUT);
  CHECK(!ran);
  faults.clear();
  synchronize(stream);
  CHECK(ran);
}

DRIVER_CASE(injected_map_failures) {
  Faults faults;
  faults.inject(NPU_FAULT_FAIL_MAP, 2, "");
  size_t free_before = 0, free_after = 0, total = 0;
  CHECK_OK(driver().memory_info(0, &free_before, &total));
  void* address = nullptr;
  CHECK_EQUAL(driver().memory_map(0, granularity(), &address), NPU_ERROR_OUT_OF_MEMORY);
  CHECK_EQUAL(driver().memory_map(0, granularity(), &address), NPU_ERROR_OUT_OF_MEMORY);
  CHECK_OK(driver().memory_info(0, &free_after, &total));
  CHECK_EQUAL(free_after, free_before);
  DeviceMemory memory(1);
}

DRIVER_CASE(malformed_faults_are_refused) {
  Faults probe;
  probe.inject(NPU_FAULT_DELAY_TASK, 1, "nothing has this name");
  npu_fault fault{};
  fault.kind = 99;
  fault.count = 1;
  CHECK_EQUAL(driver().inject_fault(0, &fault), NPU_ERROR_INVALID_ARGUMENT);
  fault.kind = NPU_FAULT_FAIL_TASK;
  fault.status = NPU_OK;
  CHECK_EQUAL(driver().inject_fault(0, &fault), NPU_ERROR_INVALID_ARGUMENT);
  fault.status = NPU_ERROR_TYPE;
  fault.count = 0;
  CHECK_EQUAL(driver().inject_fault(0, &fault), NPU_ERROR_INVALID_ARGUMENT);
  fault.count = 1;
  CHECK_EQUAL(driver().inject_fault(-1, &fault), NPU_ERROR_INVALID_ARGUMENT);
}

}  // namespace npu::conformance
