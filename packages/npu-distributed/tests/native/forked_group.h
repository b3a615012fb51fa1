// Ranks as forked processes, with memory files in place of device memory: the transport and the algorithms are tested
// without torch and without a runtime.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "transport/comm_error.h"
#include "transport/shared_memory_transport.h"

namespace npu::distributed::testing {

/// An arena of this process that peers open through /proc, like the host driver's.
class FileMemory final : public DeviceMemory {
 public:
  explicit FileMemory(size_t bytes) : bytes_(bytes), fd_(memfd_create("test-arena", MFD_CLOEXEC)) {
    if (fd_ < 0 || ftruncate(fd_, static_cast<off_t>(bytes)) != 0) throw std::runtime_error("memfd");
    base_ = static_cast<std::byte*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0));
  }
  ~FileMemory() override {
    for (auto& [address, bytes] : mapped_) munmap(address, bytes);
    munmap(base_, bytes_);
    close(fd_);
  }

  template <class T>
  T* Allocate(size_t count) {
    const size_t begin = (used_ + 511) / 512 * 512;
    used_ = begin + count * sizeof(T);
    if (used_ > bytes_) throw std::runtime_error("test arena too small");
    return reinterpret_cast<T*>(base_ + begin);
  }
  void Reset() { used_ = 0; }

  npu_memory_handle Export(const void* address, size_t bytes) override {
    ++exports;
    const auto offset = static_cast<const std::byte*>(address) - base_;
    if (offset < 0 || static_cast<size_t>(offset) + bytes > bytes_) {
      throw CommError(NPU_ERROR_INVALID_ARGUMENT, "export outside of the arena");
    }
    const Place place{getpid(), fd_, static_cast<uint64_t>(offset), bytes};
    npu_memory_handle handle{};
    std::memcpy(handle.bytes, &place, sizeof place);
    return handle;
  }
  void* Import(const npu_memory_handle& handle, size_t bytes) override {
    ++imports;
    Place place{};
    std::memcpy(&place, handle.bytes, sizeof place);
    const std::string path = "/proc/" + std::to_string(place.pid) + "/fd/" + std::to_string(place.fd);
    const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0) throw CommError(NPU_ERROR_SYSTEM, "import: " + path);
    const uint64_t skip = place.offset % 4096;
    void* address =
        mmap(nullptr, bytes + skip, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(place.offset - skip));
    close(fd);
    if (address == MAP_FAILED) throw CommError(NPU_ERROR_SYSTEM, "import: mmap");
    const std::lock_guard lock(mutex_);
    mapped_[address] = bytes + skip;
    return static_cast<std::byte*>(address) + skip;
  }
  void Close(void* address) noexcept override {
    ++closes;
    void* page = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(address) / 4096 * 4096);
    const std::lock_guard lock(mutex_);
    const auto found = mapped_.find(page);
    munmap(page, found->second);
    mapped_.erase(found);
  }

  std::atomic<int> exports = 0;
  std::atomic<int> imports = 0;
  std::atomic<int> closes = 0;

 private:
  struct Place {
    int32_t pid;
    int32_t fd;
    uint64_t offset;
    uint64_t bytes;
  };
  size_t bytes_;
  int fd_;
  std::byte* base_ = nullptr;
  size_t used_ = 0;
  std::mutex mutex_;
  std::map<void*, size_t> mapped_;
};

/// A key-value store in memory shared by the forked ranks.
struct SharedStore {
  struct Entry {
    std::atomic<uint32_t> full;
    char key[32];
    char value[400];
  };
  Entry entries[16];

  static SharedStore* Create() {
    void* address = mmap(nullptr, sizeof(SharedStore), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return static_cast<SharedStore*>(address);
  }
  KeyValueStore View() {
    KeyValueStore view;
    view.set = [this](const std::string& key, const std::string& value) {
      for (Entry& entry : entries) {
        if (entry.full.load() == 2 && key == entry.key) {
          std::strncpy(entry.value, value.c_str(), sizeof entry.value - 1);
          entry.value[value.size()] = '\0';
          return;
        }
      }
      for (Entry& entry : entries) {
        uint32_t empty = 0;
        if (!entry.full.compare_exchange_strong(empty, 1)) continue;
        std::strncpy(entry.key, key.c_str(), sizeof entry.key - 1);
        std::strncpy(entry.value, value.c_str(), sizeof entry.value - 1);
        entry.full.store(2);
        return;
      }
      throw std::runtime_error("test store is full");
    };
    view.find = [this](const std::string& key) -> std::optional<std::string> {
      for (Entry& entry : entries) {
        if (entry.full.load() == 2 && key == entry.key) return entry.value;
      }
      return std::nullopt;
    };
    return view;
  }
};

/// Far below the limit of a wait, far above the pause of a process on a busy machine.
inline constexpr std::chrono::seconds kPromptly{10};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

#define EXPECT(condition)                                                                                 \
  do {                                                                                                    \
    if (!(condition)) {                                                                                   \
      throw ::npu::distributed::testing::Failure(std::string(__FILE__) + ":" + std::to_string(__LINE__) + \
                                                 ": " #condition);                                        \
    }                                                                                                     \
  } while (0)

struct Rank {
  SharedMemoryTransport& transport;
  FileMemory& memory;
  int rank;
  int size;
};

struct GroupOptions {
  std::chrono::milliseconds limit{20000};
  size_t arena_bytes = 64u << 20;
  int killed = -1;  ///< the rank that `body` kills
};

/// Runs `body` as every rank of a new group, each in its own process; true when all of them returned normally.
inline bool RunRanks(const char* name, int size, const std::function<void(Rank&)>& body, GroupOptions options = {}) {
  SharedStore* shared = SharedStore::Create();
  std::vector<pid_t> children;
  for (int rank = 0; rank < size; ++rank) {
    const pid_t pid = fork();
    if (pid != 0) {
      children.push_back(pid);
      continue;
    }
    alarm(120);
    int status = 0;
    try {
      FileMemory memory(options.arena_bytes);
      KeyValueStore store = shared->View();
      SharedMemoryTransport transport(
          Rendezvous(store, {.rank = rank, .size = size, .limit = std::chrono::seconds(20)}), rank, memory,
          options.limit);
      Rank self{transport, memory, rank, size};
      body(self);
      transport.Leave();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "[%s] rank %d of %d: %s\n", name, rank, size, error.what());
      status = 1;
    }
    std::fflush(nullptr);
    _exit(status);
  }
  bool passed = true;
  for (int rank = 0; rank < size; ++rank) {
    int status = 0;
    waitpid(children[static_cast<size_t>(rank)], &status, 0);
    const bool as_planned = rank == options.killed ? WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL
                                                   : WIFEXITED(status) && WEXITSTATUS(status) == 0;
    passed = passed && as_planned;
  }
  munmap(shared, sizeof(SharedStore));
  std::printf("%-44s %d ranks  %s\n", name, size, passed ? "ok" : "FAILED");
  std::fflush(stdout);
  return passed;
}

/// Runs `call` and returns the text of the CommError it throws; fails when it throws nothing.
template <class Call>
std::string ErrorOf(Call call) {
  try {
    call();
  } catch (const CommError& error) {
    return error.what();
  }
  throw Failure("expected a CommError, none was thrown");
}

inline bool Contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace npu::distributed::testing
