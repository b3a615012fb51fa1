#include "transport/process_identity.h"

#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>

#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

struct ProcessState {
  bool exists = false;
  char state = '?';
  uint64_t start_time = 0;
};

ProcessState ReadState(int pid) {
  ProcessState result;
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/stat", pid);
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return result;
  char text[2048];
  const ssize_t length = read(fd, text, sizeof text - 1);
  close(fd);
  if (length <= 0) return result;
  text[length] = '\0';
  // The command name may hold spaces and parentheses: fields are counted from its last ')'.
  const char* cursor = std::strrchr(text, ')');
  if (cursor == nullptr || cursor[1] == '\0' || cursor[2] == '\0') return result;
  cursor += 2;
  result.state = *cursor;
  for (int field = 3; field < 22 && cursor != nullptr; ++field) {
    cursor = std::strchr(cursor, ' ');
    if (cursor != nullptr) ++cursor;
  }
  if (cursor == nullptr) return result;
  result.start_time = std::strtoull(cursor, nullptr, 10);
  result.exists = true;
  return result;
}

std::string FirstWord(const char* path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word.empty() ? "unknown" : word;
}

std::string LinkTarget(const char* path) {
  char target[PATH_MAX];
  const ssize_t length = readlink(path, target, sizeof target);
  return length > 0 ? std::string(target, static_cast<size_t>(length)) : "unknown";
}

std::string HostIdOfEnvironment() {
  const char* value = std::getenv("NPU_HCCL_HOST_ID");
  if (value == nullptr || *value == '\0') return "-";
  const std::string id = value;
  constexpr size_t kLongest = 64;
  if (id.size() > kLongest || id.find_first_of(" \t\r\n") != std::string::npos) {
    throw CommError(NPU_ERROR_INVALID_ARGUMENT, "NPU_HCCL_HOST_ID should be a word of at most " +
                                                    std::to_string(kLongest) + " characters, but got \"" + id + "\"");
  }
  return id;
}

}  // namespace

ProcessIdentity ProcessIdentity::OfThisProcess() {
  ProcessIdentity identity;
  char host[256] = "unknown";
  gethostname(host, sizeof host - 1);
  identity.host = host[0] != '\0' ? host : "unknown";
  identity.host_id = HostIdOfEnvironment();
  identity.boot = FirstWord("/proc/sys/kernel/random/boot_id");
  identity.pid_namespace = LinkTarget("/proc/self/ns/pid");
  identity.user = geteuid();
  identity.pid = getpid();
  identity.start_time = ReadState(identity.pid).start_time;
  std::random_device entropy;
  identity.nonce = (static_cast<uint64_t>(entropy()) << 32) | entropy();
  return identity;
}

std::string ProcessIdentity::Serialize() const {
  std::ostringstream out;
  out << "hccl2 " << host << ' ' << host_id << ' ' << boot << ' ' << pid_namespace << ' ' << user << ' ' << pid << ' '
      << start_time << ' ' << nonce;
  return out.str();
}

ProcessIdentity ProcessIdentity::Parse(const std::string& text) {
  ProcessIdentity identity;
  std::istringstream in(text);
  std::string tag;
  in >> tag >> identity.host >> identity.host_id >> identity.boot >> identity.pid_namespace >> identity.user >>
      identity.pid >> identity.start_time >> identity.nonce;
  if (!in || tag != "hccl2") {
    throw CommError(NPU_ERROR_INVALID_ARGUMENT,
                    "hccl rendezvous: expected the identity of a rank in the store, got \"" + text.substr(0, 80) +
                        "\"; do all ranks run the same version of npu-distributed?");
  }
  return identity;
}

bool ProcessIdentity::SharesMemoryWith(const ProcessIdentity& other) const {
  return host_id == other.host_id && boot == other.boot && pid_namespace == other.pid_namespace && user == other.user;
}

bool IsAlive(const ProcessIdentity& identity) {
  const ProcessState now = ReadState(identity.pid);
  return now.exists && now.start_time == identity.start_time && now.state != 'Z' && now.state != 'X';
}

}  // namespace npu::distributed
