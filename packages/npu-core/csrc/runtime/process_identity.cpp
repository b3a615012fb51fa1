#include "process_identity.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "error.h"

namespace npu {
namespace {

// Fields of /proc/<pid>/stat behind the process's name, which may hold blanks and parentheses: the state is the third
// field, the start time the 22nd.  False when there is no such process.
bool read_stat(std::int32_t pid, char* state, std::uint64_t* start_time) noexcept {
  char path[64], text[1024];
  std::snprintf(path, sizeof(path), "/proc/%d/stat", pid);
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const ssize_t length = ::read(fd, text, sizeof(text) - 1);
  ::close(fd);
  if (length <= 0) return false;
  text[length] = '\0';
  const char* field = std::strrchr(text, ')');
  if (field == nullptr || field[1] == '\0') return false;
  *state = field[2];
  for (int number = 2; field != nullptr && number < 22; ++number) field = std::strchr(field + 1, ' ');
  if (field == nullptr) return false;
  *start_time = std::strtoull(field + 1, nullptr, 10);
  return true;
}

}  // namespace

ProcessIdentity this_process() {
  ProcessIdentity process{0, ::getpid(), 0};
  char state = 0;
  TORCH_CHECK(read_stat(process.pid, &state, &process.start_time),
              "npu: cannot read /proc/self/stat, which names this process to others",
              error_suffix(Submodule::PTA, ErrorCode::SYSCALL));
  return process;
}

bool is_alive(const ProcessIdentity& process) noexcept {
  char state = 0;
  std::uint64_t start_time = 0;
  if (!read_stat(process.pid, &state, &start_time)) return false;
  return start_time == process.start_time && state != 'Z' && state != 'X';
}

}  // namespace npu
