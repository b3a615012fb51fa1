#include "suite.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>

#include "program.h"

namespace npu::conformance {

std::vector<Case>& cases() {
  static std::vector<Case> list;
  return list;
}

std::vector<PeerRole>& peer_roles() {
  static std::vector<PeerRole> list;
  return list;
}

void fail_check(const char* file, int line, const std::string& text) {
  const char* slash = strrchr(file, '/');
  throw Failure(std::string(slash != nullptr ? slash + 1 : file) + ":" + std::to_string(line) + ": " + text);
}

std::string text_of(npu_status status) {
  static const char* const kNames[] = {"NPU_OK",
                                       "NPU_ERROR_INVALID_ARGUMENT",
                                       "NPU_ERROR_OUT_OF_MEMORY",
                                       "NPU_ERROR_NOT_SUPPORTED",
                                       "NPU_ERROR_NOT_READY",
                                       "NPU_ERROR_TASK_FAILED",
                                       "NPU_ERROR_INDEX",
                                       "NPU_ERROR_TYPE",
                                       "NPU_ERROR_SYSTEM",
                                       "NPU_ERROR_TIMEOUT",
                                       "NPU_ERROR_STOPPED"};
  auto index = static_cast<size_t>(status);
  return index < std::size(kNames) ? kNames[index] : "status " + std::to_string(index);
}

const npu_driver& driver() { return *program().driver; }
bool driver_is_host() { return strcmp(driver().name, "host") == 0; }

void need_devices(int count) {
  int32_t found = 0;
  CHECK_OK(driver().device_count(&found));
  if (found < count) throw Skip("needs " + std::to_string(count) + " devices");
}

void initialize() {
  npu_error error{};
  if (driver().initialize(&error) != NPU_OK) throw Failure(std::string("initialize failed: ") + error.message);
}

Stream::Stream(int device, int priority) { CHECK_OK(driver().stream_create(device, priority, &handle)); }
// A failed check may leave work that never ends: destroying its stream would hide the failure behind a timeout.
Stream::~Stream() {
  if (handle != nullptr && std::uncaught_exceptions() == 0) driver().stream_destroy(handle);
}

Event::Event() { CHECK_OK(driver().event_create(&handle)); }
Event::~Event() {
  if (handle != nullptr) driver().event_destroy(handle);
}

size_t granularity(int device) {
  npu_device_properties properties{};
  properties.struct_size = sizeof(properties);
  CHECK_OK(driver().device_properties(device, &properties));
  return properties.memory_granularity;
}

DeviceMemory::DeviceMemory(size_t wanted, int device) : device(device) {
  size_t unit = granularity(device);
  bytes = (wanted + unit - 1) / unit * unit;
  CHECK_OK(driver().memory_map(device, bytes, &address));
}
DeviceMemory::~DeviceMemory() {
  if (address != nullptr) driver().memory_unmap(device, address, bytes);
}

void submit(npu_driver_stream* stream, npu_task_kind kind, Body body, const char* name, uint16_t flags) {
  auto owned = std::make_unique<Body>(std::move(body));
  Body* payload = owned.get();
  npu_task task{};
  task.run = [](void* bytes, npu_error* error) {
    Body* body;
    memcpy(&body, bytes, sizeof(body));
    return (*body)(error);
  };
  task.destroy = [](void* bytes) {
    Body* body;
    memcpy(&body, bytes, sizeof(body));
    delete body;
  };
  task.name = name;
  task.payload = &payload;
  task.payload_size = sizeof(payload);
  task.kind = static_cast<uint16_t>(kind);
  task.flags = flags;
  CHECK_OK(driver().stream_submit(stream, &task));
  owned.release();
}

void Gate::hold(npu_driver_stream* stream, npu_task_kind kind) {
  submit(
      stream, kind,
      [state = state_] {
        ++state->entered;
        while (!state->open) usleep(100);
      },
      "test::gate");
}

void Gate::await_entered(int count) const { EVENTUALLY(state_->entered >= count); }

void eventually(const std::function<bool()>& condition, const char* what) {
  auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) throw Failure(std::string("did not become true within 60 s: ") + what);
    usleep(100);
  }
}

void sleep_ms(int milliseconds) { usleep(static_cast<useconds_t>(milliseconds) * 1000); }

void synchronize(npu_driver_stream* stream) { CHECK_OK(driver().stream_synchronize(stream, kPatience)); }

// ---- other processes ----

void read_exactly(int fd, void* bytes, size_t size) {
  for (size_t done = 0; done < size;) {
    ssize_t got = ::read(fd, static_cast<char*>(bytes) + done, size - done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw Failure("the other process ended early");
    done += static_cast<size_t>(got);
  }
}

void write_exactly(int fd, const void* bytes, size_t size) {
  for (size_t done = 0; done < size;) {
    ssize_t put = ::write(fd, static_cast<const char*>(bytes) + done, size - done);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) throw Failure("the other process ended early");
    done += static_cast<size_t>(put);
  }
}

PeerProcess::PeerProcess(const char* role, const std::vector<std::string>& environment) {
  int to_child[2], from_child[2];
  if (pipe2(to_child, O_CLOEXEC) != 0 || pipe2(from_child, O_CLOEXEC) != 0) throw Failure("pipe2 failed");
  // Everything is prepared before the fork: the child of a process with threads may do little but exec.
  std::vector<std::string> arguments{program().path, "--driver", program().driver_name, "--peer", role};
  std::vector<std::string> variables = environment;
  for (char** variable = environ; *variable != nullptr; ++variable) variables.emplace_back(*variable);
  std::vector<char*> argv, envp;
  for (auto& argument : arguments) argv.push_back(argument.data());
  for (auto& variable : variables) envp.push_back(variable.data());
  argv.push_back(nullptr);
  envp.push_back(nullptr);
  pid_ = fork();
  if (pid_ < 0) throw Failure("fork failed");
  if (pid_ == 0) {
    dup2(to_child[0], STDIN_FILENO);
    dup2(from_child[1], STDOUT_FILENO);
    execve("/proc/self/exe", argv.data(), envp.data());
    _exit(126);
  }
  ::close(to_child[0]);
  ::close(from_child[1]);
  input_ = to_child[1];
  output_ = from_child[0];
}

PeerProcess::~PeerProcess() {
  kill();
  ::close(input_);
  ::close(output_);
}

void PeerProcess::write(const void* bytes, size_t size) { write_exactly(input_, bytes, size); }
void PeerProcess::read(void* bytes, size_t size) { read_exactly(output_, bytes, size); }

void PeerProcess::kill() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  wait();
}

int PeerProcess::wait() {
  int status = 0;
  while (pid_ >= 0 && waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace npu::conformance
