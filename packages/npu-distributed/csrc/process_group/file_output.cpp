#include "process_group/file_output.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <set>

namespace npu::distributed {
namespace {

namespace fs = std::filesystem;

void WarnOnce(const std::string& path, const char* what) {
  const int code = errno;
  static std::mutex mutex;
  static auto* warned = new std::set<std::string>;
  const std::string folder = fs::path(path).parent_path().string();
  const std::lock_guard lock(mutex);
  if (!warned->insert(folder).second) return;
  std::fprintf(stderr, "hccl: warning: %s %s failed (%s); later failures in this folder are not reported\n", what,
               path.c_str(), std::strerror(code));
}

bool WriteAll(int fd, const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = write(fd, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += static_cast<size_t>(count);
  }
  return true;
}

void MakeFolderOf(const std::string& path) {
  std::error_code ignored;  // opening the file tells
  const fs::path folder = fs::path(path).parent_path();
  if (!folder.empty()) fs::create_directories(folder, ignored);
}

bool Write(const std::string& path, int flags, const std::string& text) {
  MakeFolderOf(path);
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0640);
  if (fd < 0) return false;
  const bool written = WriteAll(fd, text);
  return close(fd) == 0 && written;
}

}  // namespace

bool WriteWholeFile(const std::string& path, const std::string& text) noexcept try {
  const std::string draft = path + ".tmp";
  if (Write(draft, O_TRUNC, text) && std::rename(draft.c_str(), path.c_str()) == 0) return true;
  WarnOnce(path, "writing");
  unlink(draft.c_str());
  return false;
} catch (const std::exception&) {
  return false;
}

bool AppendLine(const std::string& path, const std::string& line) noexcept try {
  if (Write(path, O_APPEND, line + "\n")) return true;
  WarnOnce(path, "appending to");
  return false;
} catch (const std::exception&) {
  return false;
}

}  // namespace npu::distributed
