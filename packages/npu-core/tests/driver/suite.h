// The frame of the conformance suite: cases, checks, and RAII handles around the driver under test.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "npu/driver.h"

namespace npu::conformance {

// ---- cases ----

struct Case {
  const char* name;
  void (*body)();
};
std::vector<Case>& cases();

struct Registration {
  Registration(const char* name, void (*body)()) { cases().push_back({name, body}); }
};

// Defines a case.  It runs in a process of its own, with the driver initialised.
#define DRIVER_CASE(name)                                                         \
  static void name();                                                             \
  static const ::npu::conformance::Registration registration_##name{#name, name}; \
  static void name()

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// Thrown when the driver does not have what the case is about and the contract lets it do without.
struct Skip : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---- checks ----

[[noreturn]] void fail_check(const char* file, int line, const std::string& text);
std::string text_of(npu_status status);

template <typename T>
std::string show(const T& value) {
  if constexpr (std::is_same_v<T, npu_status>) {
    return text_of(value);
  } else if constexpr (std::is_arithmetic_v<T>) {
    return std::to_string(value);
  } else if constexpr (std::is_enum_v<T>) {
    return std::to_string(static_cast<long long>(value));
  } else if constexpr (std::is_pointer_v<T>) {
    return value == nullptr ? "NULL" : "a pointer";
  } else {
    return std::string(value);
  }
}

#define CHECK(condition)                                                                           \
  do {                                                                                             \
    if (!(condition)) ::npu::conformance::fail_check(__FILE__, __LINE__, "not true: " #condition); \
  } while (false)

#define CHECK_EQUAL(actual, expected)                                                                    \
  do {                                                                                                   \
    const auto actual_ = (actual);                                                                       \
    const auto expected_ = static_cast<std::decay_t<decltype(actual_)>>(expected);                       \
    if (!(actual_ == expected_))                                                                         \
      ::npu::conformance::fail_check(__FILE__, __LINE__,                                                 \
                                     std::string(#actual) + " is " + ::npu::conformance::show(actual_) + \
                                         ", expected " + ::npu::conformance::show(expected_) +           \
                                         "; last_error: " + ::npu::conformance::driver().last_error());  \
  } while (false)

#define CHECK_OK(call) CHECK_EQUAL(call, NPU_OK)

// ---- the driver under test ----

const npu_driver& driver();
bool driver_is_host();
// Skips the case when there are fewer devices.
void need_devices(int count);
void initialize();

struct Stream {
  explicit Stream(int device = 0, int priority = 0);
  Stream(Stream&& other) noexcept : handle(std::exchange(other.handle, nullptr)) {}
  ~Stream();
  operator npu_driver_stream*() const { return handle; }
  npu_driver_stream* release() { return std::exchange(handle, nullptr); }
  npu_driver_stream* handle = nullptr;
};

struct Event {
  Event();
  Event(Event&& other) noexcept : handle(std::exchange(other.handle, nullptr)) {}
  ~Event();
  operator npu_driver_event*() const { return handle; }
  npu_driver_event* release() { return std::exchange(handle, nullptr); }
  npu_driver_event* handle = nullptr;
};

struct DeviceMemory {
  explicit DeviceMemory(size_t bytes, int device = 0);  // rounded up to the granularity
  ~DeviceMemory();
  unsigned char* data() const { return static_cast<unsigned char*>(address); }
  int device;
  size_t bytes;
  void* address = nullptr;
};

size_t granularity(int device = 0);

// Queues a callable.
using Body = std::function<npu_status(npu_error*)>;
void submit(npu_driver_stream* stream, npu_task_kind kind, Body body, const char* name = "test::task",
            uint16_t flags = 0);
inline void submit(npu_driver_stream* stream, npu_task_kind kind, std::function<void()> body,
                   const char* name = "test::task", uint16_t flags = 0) {
  submit(stream, kind, Body([body = std::move(body)](npu_error*) {
           body();
           return NPU_OK;
         }),
         name, flags);
}

// A task that lasts until the test lets it end.  Opened by the destructor too, so that a failed check does not hang.
class Gate {
 public:
  Gate() : state_(std::make_shared<State>()) {}
  ~Gate() { open(); }
  void hold(npu_driver_stream* stream, npu_task_kind kind = NPU_TASK_COMPUTE);
  void open() { state_->open = true; }
  bool entered() const { return state_->entered > 0; }
  void await_entered(int count = 1) const;

 private:
  struct State {
    std::atomic<bool> open{false};
    std::atomic<int> entered{0};
  };
  std::shared_ptr<State> state_;
};

// Waits until `condition` holds; fails the case after a minute: a busy machine may give a process a few percent of a
// core.
void eventually(const std::function<bool()>& condition, const char* what);
#define EVENTUALLY(condition) ::npu::conformance::eventually([&] { return (condition); }, #condition)

void sleep_ms(int milliseconds);
constexpr int64_t kMillisecond = 1'000'000;
constexpr int64_t kPatience = 100'000 * kMillisecond;  // for waits that must end
void synchronize(npu_driver_stream* stream);           // must succeed

// Sanitizers slow everything down: loops shrink by this factor.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kScale = 8;
#else
constexpr int kScale = 1;
#endif

// ---- other processes ----

// This program again, in the role of a peer: a registered function that talks over its standard streams.
struct PeerRole {
  const char* name;
  int (*body)();
};
std::vector<PeerRole>& peer_roles();
struct PeerRegistration {
  PeerRegistration(const char* name, int (*body)()) { peer_roles().push_back({name, body}); }
};
#define PEER_ROLE(name)                                                                    \
  static int name();                                                                       \
  static const ::npu::conformance::PeerRegistration peer_registration_##name{#name, name}; \
  static int name()

class PeerProcess {
 public:
  explicit PeerProcess(const char* role, const std::vector<std::string>& environment = {});
  ~PeerProcess();
  void write(const void* bytes, size_t size);
  void read(void* bytes, size_t size);
  void kill();
  int wait();  // the exit status, or 128 + the signal

 private:
  int pid_ = -1;
  int input_ = -1;   // of the child
  int output_ = -1;  // of the child
};

void read_exactly(int fd, void* bytes, size_t size);
void write_exactly(int fd, const void* bytes, size_t size);

}  // namespace npu::conformance
