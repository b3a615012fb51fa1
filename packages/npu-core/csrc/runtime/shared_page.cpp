#include "shared_page.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <map>
#include <mutex>

#include "error.h"

namespace npu {
namespace {

static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);

constexpr long kLivenessNs = 100'000'000;

std::string system_failure(const char* what) {
  return std::string("npu: cannot ") + what + ": " + std::strerror(errno) +
         error_suffix(Submodule::PTA, ErrorCode::SYSCALL);
}

std::byte* map(int fd) {
  void* base = ::mmap(nullptr, SharedPage::kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return base == MAP_FAILED ? nullptr : static_cast<std::byte*>(base);
}

// Every page is mapped once, however many of its cells are in use here.
struct OpenedPages {
  std::mutex mutex;
  std::map<std::array<std::uint64_t, 3>, std::weak_ptr<SharedPage>> pages;
};

}  // namespace

std::shared_ptr<SharedPage> SharedPage::create() {
  PageName name{};
  name.owner = this_process();
  name.fd = ::memfd_create("npu-shared-page", MFD_CLOEXEC);
  TORCH_CHECK(name.fd >= 0, system_failure("create memory that other processes can map"));
  struct stat status{};
  std::byte* base = nullptr;
  if (::ftruncate(name.fd, kBytes) == 0 && ::fstat(name.fd, &status) == 0) base = map(name.fd);
  if (base == nullptr) {
    const std::string message = system_failure("map memory that other processes can map");
    ::close(name.fd);
    TORCH_CHECK(false, message);
  }
  name.inode = status.st_ino;
  name.filesystem = status.st_dev;
  return std::shared_ptr<SharedPage>(new SharedPage(base, name, true));
}

std::shared_ptr<SharedPage> SharedPage::open(const PageName& name, const char* what) {
  static auto* opened = new OpenedPages;
  std::lock_guard lock(opened->mutex);
  const std::array<std::uint64_t, 3> key{name.inode, name.filesystem, name.owner.start_time};
  if (const auto known = opened->pages.find(key); known != opened->pages.end())
    if (auto page = known->second.lock()) return page;
  auto page = open_now(name, what);
  std::erase_if(opened->pages, [](const auto& entry) { return entry.second.expired(); });
  opened->pages.insert_or_assign(key, page);
  return page;
}

std::shared_ptr<SharedPage> SharedPage::open_now(const PageName& name, const char* what) {
  char path[64];
  std::snprintf(path, sizeof(path), "/proc/%d/fd/%d", name.owner.pid, name.fd);
  const int fd = is_alive(name.owner) ? ::open(path, O_RDWR | O_CLOEXEC) : (errno = ESRCH, -1);
  TORCH_CHECK(fd >= 0 || (errno != EACCES && errno != EPERM), "npu: cannot receive ", what, " from process ",
              name.owner.pid, ", which does not let this one see its memory: both need the same user",
              error_suffix(Submodule::PTA, ErrorCode::PERMISSION));
  struct stat status{};
  std::byte* base = nullptr;
  if (fd >= 0) {
    if (::fstat(fd, &status) == 0 && status.st_ino == name.inode && status.st_dev == name.filesystem) base = map(fd);
    ::close(fd);
  }
  TORCH_CHECK(base != nullptr, "npu: cannot receive ", what, " from process ", name.owner.pid,
              ", which has ended: it has to live until the others have received what it sent",
              error_suffix(Submodule::PTA, ErrorCode::UNAVAIL));
  return std::shared_ptr<SharedPage>(new SharedPage(base, name, false));
}

SharedPage::~SharedPage() {
  ::munmap(base_, kBytes);
  if (own_) ::close(name_.fd);
}

bool wait_shared(std::atomic<std::uint32_t>& word, const std::function<bool()>& done,
                 const std::function<ProcessIdentity()>& waker) {
  for (;;) {
    const std::uint32_t seen = word.load(std::memory_order_acquire);
    if (done()) return true;
    const timespec limit{0, kLivenessNs};
    const long result = ::syscall(SYS_futex, &word, FUTEX_WAIT, seen, &limit, nullptr, 0);
    // A process may have made the change and ended: look at the change last.
    if (result < 0 && errno == ETIMEDOUT && !is_alive(waker())) return done();
  }
}

void wake_shared(std::atomic<std::uint32_t>& word) noexcept {
  word.fetch_add(1, std::memory_order_release);
  ::syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace npu
