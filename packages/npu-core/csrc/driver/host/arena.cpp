#include "arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "configuration.h"
#include "error.h"

namespace npu::host {
namespace {

unsigned long long number(size_t bytes) { return bytes; }

// The file at an aligned address of its own, or MAP_FAILED with errno.  NORESERVE: the range is an address space; pages
// count when they are touched.
void* reserve_addresses(int fd, size_t extent) {
  const size_t reserved = extent + kMemoryGranularity;  // one granule more, to align
  void* range = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return MAP_FAILED;
  const auto begin = reinterpret_cast<uintptr_t>(range);
  const uintptr_t end = begin + reserved;
  const uintptr_t aligned = (begin + kMemoryGranularity - 1) / kMemoryGranularity * kMemoryGranularity;
  void* base = mmap(reinterpret_cast<void*>(aligned), extent, PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0);
  if (base == MAP_FAILED) {
    const int code = errno;
    munmap(range, reserved);
    errno = code;
    return MAP_FAILED;
  }
  if (aligned > begin) munmap(range, aligned - begin);
  if (aligned + extent < end) munmap(reinterpret_cast<void*>(aligned + extent), end - aligned - extent);
  return base;
}

}  // namespace

npu_status Arena::open(int device, size_t capacity) {
  std::lock_guard lock(mutex_);
  int fd = memfd_create("npu-device-memory", MFD_CLOEXEC);
  if (fd < 0) return fail_errno("device %d: cannot create its memory (memfd_create)", device);
  // Twice the addresses that may be mapped, where there are so many: a real device remaps pages, so what is free is
  // hardly ever too scattered to use.
  size_t extent = 0;
  void* base = MAP_FAILED;
  for (size_t times : {2, 1}) {
    extent = times * capacity;
    if (ftruncate(fd, static_cast<off_t>(extent)) == 0) base = reserve_addresses(fd, extent);
    if (base != MAP_FAILED) break;
  }
  struct stat status{};
  if (base == MAP_FAILED || fstat(fd, &status) != 0) {
    npu_status result =
        fail_errno("device %d: cannot reserve %llu bytes of address space for its memory (set NPU_HOST_MEMORY lower)",
                   device, number(capacity));
    if (base != MAP_FAILED) munmap(base, extent);
    ::close(fd);
    return result;
  }
  madvise(base, extent, MADV_HUGEPAGE);  // no effect where the system keeps huge pages off for shared memory
  base_ = static_cast<char*>(base);
  capacity_ = capacity;
  extent_ = extent;
  device_ = device;
  identity_ = {fd, status.st_ino, status.st_dev};
  mapped_bytes_ = 0;
  mapped_.clear();
  free_.clear();
  free_.emplace(0, extent);
  return NPU_OK;
}

void Arena::close() {
  std::lock_guard lock(mutex_);
  if (base_ == nullptr) return;
  munmap(base_, extent_);
  ::close(identity_.fd);
  base_ = nullptr;
  capacity_ = extent_ = mapped_bytes_ = 0;
  identity_ = {-1, 0, 0};
  mapped_.clear();
  free_.clear();
}

npu_status Arena::map(size_t bytes, void** address) {
  if (bytes == 0 || bytes % kMemoryGranularity != 0) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "memory_map: %llu bytes; expected a positive multiple of %llu",
                number(bytes), number(kMemoryGranularity));
  }
  std::lock_guard lock(mutex_);
  if (base_ == nullptr) return fail(NPU_ERROR_STOPPED, "memory_map: the driver was shut down");
  size_t offset;
  if (bytes > capacity_ - mapped_bytes_) {
    return fail(NPU_ERROR_OUT_OF_MEMORY,
                "device %d has %llu of %llu bytes left, %llu were asked for (its capacity is set by NPU_HOST_MEMORY)",
                device_, number(capacity_ - mapped_bytes_), number(capacity_), number(bytes));
  }
  if (!take_free_range(bytes, &offset)) {
    return fail(NPU_ERROR_OUT_OF_MEMORY, "device %d has %llu bytes left, but no free range of %llu bytes", device_,
                number(capacity_ - mapped_bytes_), number(bytes));
  }
  mapped_.emplace(offset, bytes);
  mapped_bytes_ += bytes;
  *address = base_ + offset;
  return NPU_OK;
}

npu_status Arena::unmap(void* address, size_t bytes) {
  std::lock_guard lock(mutex_);
  if (base_ == nullptr) return fail(NPU_ERROR_STOPPED, "memory_unmap: the driver was shut down");
  auto range = mapped_.find(offset_of(address));
  if (static_cast<char*>(address) < base_ || range == mapped_.end()) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "memory_unmap: %p is not an address memory_map of device %d returned",
                address, device_);
  }
  if (range->second != bytes) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "memory_unmap: %p was mapped with %llu bytes, not %llu", address,
                number(range->second), number(bytes));
  }
  size_t offset = range->first;
  // The hole gives the pages back to the system, here and in every process that maps them, and reads as zero.
  if (fallocate(identity_.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                static_cast<off_t>(bytes)) != 0) {
    return fail_errno("memory_unmap: cannot give back %llu bytes of device %d", number(bytes), device_);
  }
  mapped_.erase(range);
  mapped_bytes_ -= bytes;
  give_free_range(offset, bytes);
  return NPU_OK;
}

// Best fit: large ranges stay whole for large requests.
bool Arena::take_free_range(size_t bytes, size_t* offset) {
  auto best = free_.end();
  for (auto range = free_.begin(); range != free_.end(); ++range) {
    if (range->second >= bytes && (best == free_.end() || range->second < best->second)) best = range;
  }
  if (best == free_.end()) return false;
  *offset = best->first;
  size_t rest = best->second - bytes;
  free_.erase(best);
  if (rest != 0) free_.emplace(*offset + bytes, rest);
  return true;
}

void Arena::give_free_range(size_t offset, size_t bytes) {
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && offset + bytes == next->first) {
    bytes += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      previous->second += bytes;
      return;
    }
  }
  free_.emplace(offset, bytes);
}

void Arena::info(size_t* free_bytes, size_t* total_bytes) {
  std::lock_guard lock(mutex_);
  *free_bytes = capacity_ - mapped_bytes_;
  *total_bytes = capacity_;
}

bool Arena::owns(const void* address, size_t bytes) {
  std::lock_guard lock(mutex_);
  const char* first = static_cast<const char*>(address);
  if (base_ == nullptr || first < base_ || first >= base_ + extent_) return false;
  size_t offset = offset_of(address);
  auto after = mapped_.upper_bound(offset);
  if (after == mapped_.begin()) return false;
  auto range = std::prev(after);
  return offset < range->first + range->second && bytes <= range->first + range->second - offset;
}

size_t Arena::promised_bytes() {
  std::lock_guard lock(mutex_);
  struct stat status{};
  if (base_ == nullptr || fstat(identity_.fd, &status) != 0) return 0;
  size_t backed = static_cast<size_t>(status.st_blocks) * 512;
  return mapped_bytes_ > backed ? mapped_bytes_ - backed : 0;
}

}  // namespace npu::host
