// The memory of one device: an address range reserved up front, committed page by page as it is touched.
//
// The range is a memfd mapped shared, so that other processes of the user can map the same pages (memory_export).
// It has no name in any file system and disappears with the last process that maps it.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

#include "npu/driver.h"

namespace npu::host {

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  npu_status open(int device, size_t capacity);
  void close();  // gives back everything, mapped ranges included

  npu_status map(size_t bytes, void** address);
  npu_status unmap(void* address, size_t bytes);
  void info(size_t* free_bytes, size_t* total_bytes);

  // Is the range wholly inside one mapped range?
  bool owns(const void* address, size_t bytes);
  // Bytes that are mapped but not backed by pages yet: the machine has promised them already.
  size_t promised_bytes();

  // What another process needs to find the arena.
  struct Identity {
    int fd;
    uint64_t inode;
    uint64_t filesystem;
  };
  Identity identity() const { return identity_; }
  size_t offset_of(const void* address) const { return static_cast<size_t>(static_cast<const char*>(address) - base_); }
  void* address_of(size_t offset) const { return base_ + offset; }

 private:
  bool take_free_range(size_t bytes, size_t* offset);
  void give_free_range(size_t offset, size_t bytes);

  std::mutex mutex_;
  char* base_ = nullptr;
  size_t capacity_ = 0;  // bytes that may be mapped
  size_t extent_ = 0;    // bytes of address space
  size_t mapped_bytes_ = 0;
  int device_ = -1;
  Identity identity_{-1, 0, 0};
  std::map<size_t, size_t> free_;    // offset -> bytes, neighbours merged
  std::map<size_t, size_t> mapped_;  // offset -> bytes
};

}  // namespace npu::host
