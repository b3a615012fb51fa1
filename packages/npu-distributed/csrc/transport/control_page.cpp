#include "transport/control_page.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

constexpr uint64_t kMagic = 0x6e70755f68636331ull;
constexpr size_t kFailureTextBytes = 1536;

struct PageHeader {
  uint64_t magic;
  uint64_t nonce;
  uint32_t size;
  uint32_t version;
  alignas(128) Doorbell bell;
  alignas(128) std::atomic<uint32_t> joined;
  /// 0 = healthy, 1 = being written, 2 = text is valid.
  alignas(128) std::atomic<uint32_t> failure_state;
  int32_t failure_rank;
  int32_t failure_status;
  char failure_text[kFailureTextBytes];
};

constexpr size_t kHeaderBytes = 4096;
static_assert(sizeof(PageHeader) <= kHeaderBytes);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

size_t RoundUp(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

[[noreturn]] void ThrowSystem(const std::string& what) {
  throw CommError(NPU_ERROR_SYSTEM, what + ": " + std::strerror(errno));
}

PageHeader& HeaderAt(std::byte* base) { return *reinterpret_cast<PageHeader*>(base); }

}  // namespace

ControlPage::ControlPage(int fd, int size, int regions)
    : fd_(fd),
      size_(size),
      region_capacity_(static_cast<size_t>(regions)),
      slot_bytes_(
          RoundUp(sizeof(AnnouncementHeader) + region_capacity_ * (sizeof(Extent) + sizeof(npu_memory_handle)), 64) +
          kInlineBytes),
      mail_begin_(RoundUp(kHeaderBytes + static_cast<size_t>(size) * (sizeof(RankState) + 2 * slot_bytes_), 4096)),
      // Pages of pairs that never exchange a message are never touched, so they cost address space only.
      bytes_(RoundUp(mail_begin_ + static_cast<size_t>(size) * static_cast<size_t>(size) * sizeof(Mailbox), 4096)) {}

void ControlPage::Map() {
  void* address = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  if (address == MAP_FAILED) ThrowSystem("hccl control page: mapping failed");
  base_ = static_cast<std::byte*>(address);
}

std::unique_ptr<ControlPage> ControlPage::Create(int size, int regions, uint64_t nonce) {
  const int fd = memfd_create("npu-hccl-control", MFD_CLOEXEC);
  if (fd < 0) ThrowSystem("hccl control page: memfd_create failed");
  std::unique_ptr<ControlPage> page(new ControlPage(fd, size, regions));
  if (ftruncate(fd, static_cast<off_t>(page->bytes_)) != 0) ThrowSystem("hccl control page: sizing failed");
  page->Map();
  // Fresh memory reads as zero, which is the initial value of every counter.
  PageHeader& header = HeaderAt(page->base_);
  header.nonce = nonce;
  header.size = static_cast<uint32_t>(size);
  header.version = 1;
  header.magic = kMagic;
  return page;
}

std::unique_ptr<ControlPage> ControlPage::Open(const ProcessIdentity& creator, int creator_fd, int size, int regions) {
  const std::string path = "/proc/" + std::to_string(creator.pid) + "/fd/" + std::to_string(creator_fd);
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) {
    ThrowSystem("hccl rendezvous: opening the control page of rank " + std::to_string(creator.rank) + " (process " +
                std::to_string(creator.pid) +
                ") failed; both processes must belong to the same user and see each other's /proc");
  }
  std::unique_ptr<ControlPage> page(new ControlPage(fd, size, regions));
  struct stat status{};
  if (fstat(fd, &status) != 0) ThrowSystem("hccl control page: fstat failed");
  if (static_cast<size_t>(status.st_size) == page->bytes_) page->Map();
  if (page->base_ == nullptr || HeaderAt(page->base_).magic != kMagic || HeaderAt(page->base_).nonce != creator.nonce ||
      HeaderAt(page->base_).size != static_cast<uint32_t>(size)) {
    throw CommError(NPU_ERROR_SYSTEM, "hccl rendezvous: the control page of rank " + std::to_string(creator.rank) +
                                          " is not the one of this group of " + std::to_string(size) +
                                          " ranks; is a key of an earlier run left in the store?");
  }
  return page;
}

ControlPage::~ControlPage() {
  Seal();
  if (base_ != nullptr) munmap(base_, bytes_);
}

void ControlPage::Seal() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

Doorbell& ControlPage::bell() { return HeaderAt(base_).bell; }
std::atomic<uint32_t>& ControlPage::joined() { return HeaderAt(base_).joined; }

RankState& ControlPage::state(int rank) { return reinterpret_cast<RankState*>(base_ + kHeaderBytes)[rank]; }

AnnouncementHeader& ControlPage::header(int rank, uint64_t call) {
  std::byte* slots = base_ + kHeaderBytes + static_cast<size_t>(size_) * sizeof(RankState);
  return *reinterpret_cast<AnnouncementHeader*>(slots + (static_cast<size_t>(rank) * 2 + call % 2) * slot_bytes_);
}

Extent* ControlPage::region_extents(int rank, uint64_t call) {
  return reinterpret_cast<Extent*>(reinterpret_cast<std::byte*>(&header(rank, call)) + sizeof(AnnouncementHeader));
}

npu_memory_handle* ControlPage::region_handles(int rank, uint64_t call) {
  return reinterpret_cast<npu_memory_handle*>(region_extents(rank, call) + region_capacity_);
}

std::byte* ControlPage::payload(int rank, uint64_t call) {
  return reinterpret_cast<std::byte*>(&header(rank, call)) + slot_bytes_ - kInlineBytes;
}

Mailbox& ControlPage::mailbox(int from, int to) {
  const auto index = static_cast<size_t>(from) * static_cast<size_t>(size_) + static_cast<size_t>(to);
  return reinterpret_cast<Mailbox*>(base_ + mail_begin_)[index];
}

void ControlPage::RingAll() noexcept {
  bell().Ring();
  for (int rank = 0; rank < size_; ++rank) state(rank).mail.Ring();
}

void ControlPage::SetFailure(int rank, npu_status status, const char* text) noexcept {
  PageHeader& header = HeaderAt(base_);
  uint32_t healthy = 0;
  if (header.failure_state.compare_exchange_strong(healthy, 1)) {
    header.failure_rank = rank;
    header.failure_status = status;
    std::strncpy(header.failure_text, text, kFailureTextBytes - 1);
    header.failure_state.store(2, std::memory_order_seq_cst);
  }
  RingAll();
}

const char* ControlPage::failure(int* rank, npu_status* status) const {
  PageHeader& header = HeaderAt(base_);
  if (header.failure_state.load(std::memory_order_acquire) != 2) return nullptr;
  *rank = header.failure_rank;
  *status = static_cast<npu_status>(header.failure_status);
  return header.failure_text;
}

}  // namespace npu::distributed
