#include "machine_memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

namespace npu::host {
namespace {

struct CloseFile {
  void operator()(FILE* file) const { fclose(file); }
};
using File = std::unique_ptr<FILE, CloseFile>;

File open_text(const std::string& path) { return File(fopen(path.c_str(), "re")); }

// The number after `key` at the start of a line; an empty key takes the first line.
bool read_value(const std::string& path, const char* key, size_t* value) {
  File file = open_text(path);
  char line[256];
  while (file != nullptr && fgets(line, sizeof(line), file.get()) != nullptr) {
    if (strncmp(line, key, strlen(key)) != 0) continue;
    unsigned long long number;
    if (sscanf(line + strlen(key), " %llu", &number) != 1) return false;  // "max"
    *value = number;
    return true;
  }
  return false;
}

// Control group version 2: every group from the process's own up to the root may carry a limit.
size_t available_in_group() {
  File file = open_text("/proc/self/cgroup");
  char line[4096];
  std::string group;
  while (file != nullptr && fgets(line, sizeof(line), file.get()) != nullptr) {
    if (strncmp(line, "0::", 3) == 0) group.assign(line + 3, strcspn(line + 3, "\n"));
  }
  size_t available = SIZE_MAX;
  while (!group.empty()) {
    std::string folder = "/sys/fs/cgroup" + (group == "/" ? "" : group);
    size_t limit, used, cache = 0;
    if (read_value(folder + "/memory.max", "", &limit) && read_value(folder + "/memory.current", "", &used)) {
      read_value(folder + "/memory.stat", "inactive_file ", &cache);  // dropped by the kernel before it refuses
      used -= std::min(used, cache);
      available = std::min(available, limit - std::min(limit, used));
    }
    if (group == "/") break;
    group.resize(std::max<size_t>(group.rfind('/'), 1));
  }
  return available;
}

}  // namespace

size_t available_machine_memory() {
  size_t kibibytes;
  size_t available = SIZE_MAX;
  if (read_value("/proc/meminfo", "MemAvailable:", &kibibytes)) available = kibibytes * 1024;
  return std::min(available, available_in_group());
}

}  // namespace npu::host
