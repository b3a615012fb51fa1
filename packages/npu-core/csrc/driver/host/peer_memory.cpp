#include "peer_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "error.h"

namespace npu::host {
namespace {

constexpr char kMagic[8] = {'n', 'p', 'u', 'm', 'e', 'm', '0', '1'};

// Field 22 of /proc/<pid>/stat, in clock ticks since boot; 0 when there is no such process.
uint64_t start_time_of(int32_t pid) {
  char path[64], text[1024];
  snprintf(path, sizeof(path), "/proc/%d/stat", pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t length = read(fd, text, sizeof(text) - 1);
  ::close(fd);
  if (length <= 0) return 0;
  text[length] = '\0';
  const char* field = strrchr(text, ')');  // the name before it may hold blanks and parentheses
  for (int number = 2; field != nullptr && number < 22; ++number) {
    field = strchr(field + 1, ' ');
  }
  return field != nullptr ? strtoull(field + 1, nullptr, 10) : 0;
}

}  // namespace

uint32_t PeerMemory::checksum(const Handle& handle) {
  uint32_t sum = 2166136261u;  // FNV-1a over all but the checksum itself
  const auto* bytes = reinterpret_cast<const unsigned char*>(&handle);
  for (size_t i = 0; i < offsetof(Handle, checksum); ++i) sum = (sum ^ bytes[i]) * 16777619u;
  return sum;
}

npu_status PeerMemory::export_range(int device, Arena& arena, const void* address, size_t bytes,
                                    npu_memory_handle* handle) {
  Arena::Identity identity = arena.identity();
  Handle named{};
  memcpy(named.magic, kMagic, sizeof(kMagic));
  named.pid = getpid();
  named.start_time = start_time_of(named.pid);
  named.inode = identity.inode;
  named.filesystem = identity.filesystem;
  named.offset = arena.offset_of(address);
  named.bytes = bytes;
  named.fd = identity.fd;
  named.device = device;
  named.checksum = checksum(named);
  if (named.start_time == 0) return fail(NPU_ERROR_SYSTEM, "memory_export: cannot read /proc/self/stat");
  memcpy(handle, &named, sizeof(named));
  return NPU_OK;
}

npu_status PeerMemory::decode(const npu_memory_handle* handle, Handle* decoded) {
  memcpy(decoded, handle, sizeof(*decoded));
  if (memcmp(decoded->magic, kMagic, sizeof(kMagic)) != 0 || decoded->checksum != checksum(*decoded)) {
    return fail(
        NPU_ERROR_INVALID_ARGUMENT,
        "memory_import: these bytes are no handle of memory_export of this driver (damaged, or another version)");
  }
  return NPU_OK;
}

bool PeerMemory::is_own(const Handle& handle) {
  return handle.pid == getpid() && handle.start_time == start_time_of(handle.pid);
}

npu_status PeerMemory::import_own(const Handle& handle, Arena* arena, void** address) {
  if (arena == nullptr || arena->identity().inode != handle.inode ||
      !arena->owns(arena->address_of(handle.offset), handle.bytes)) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "memory_import: this process has unmapped the range since it exported it");
  }
  *address = arena->address_of(handle.offset);
  std::lock_guard lock(mutex_);
  Import& import = imports_[*address];
  import.own = true;
  ++import.count;
  return NPU_OK;
}

npu_status PeerMemory::map_peer(const Handle& handle, Peer* peer) {
  if (start_time_of(handle.pid) != handle.start_time) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "memory_import: process %d, which exported the memory, has ended",
                handle.pid);
  }
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/fd/%d", handle.pid, handle.fd);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0 && (errno == EACCES || errno == EPERM)) {
    return fail_errno("memory_import: process %d does not let this one see its memory (same user and container needed)",
                      handle.pid);
  }
  struct stat status{};
  if (fd < 0 || fstat(fd, &status) != 0 || status.st_ino != handle.inode || status.st_dev != handle.filesystem ||
      static_cast<uint64_t>(status.st_size) < handle.offset + handle.bytes) {
    if (fd >= 0) ::close(fd);
    return fail(NPU_ERROR_INVALID_ARGUMENT,
                "memory_import: process %d no longer holds the exported memory (it ended or shut its driver down)",
                handle.pid);
  }
  peer->bytes = static_cast<size_t>(status.st_size);
  void* base = mmap(nullptr, peer->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  npu_status result = NPU_OK;
  if (base == MAP_FAILED) {
    result = fail_errno("memory_import: cannot map the memory of process %d", handle.pid);
  } else {
    peer->base = static_cast<char*>(base);
  }
  ::close(fd);  // the mapping keeps the memory alive, also beyond the exporter's end
  return result;
}

npu_status PeerMemory::import_peer(const Handle& handle, void** address) {
  PeerKey key{handle.pid, handle.start_time, handle.inode, handle.filesystem};
  std::lock_guard lock(mutex_);
  Peer& peer = peers_[key];
  if (peer.base == nullptr) {
    npu_status status = map_peer(handle, &peer);
    if (status != NPU_OK) {
      peers_.erase(key);
      return status;
    }
  }
  *address = peer.base + handle.offset;
  Import& import = imports_[*address];
  import.peer = key;
  ++import.count;
  ++peer.imports;
  return NPU_OK;
}

npu_status PeerMemory::close_range(void* address) {
  std::lock_guard lock(mutex_);
  auto import = imports_.find(address);
  if (import == imports_.end()) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "memory_close: %p is not an address memory_import returned", address);
  }
  if (!import->second.own) {
    auto peer = peers_.find(import->second.peer);
    if (--peer->second.imports == 0) {
      munmap(peer->second.base, peer->second.bytes);
      peers_.erase(peer);
    }
  }
  if (--import->second.count == 0) imports_.erase(import);
  return NPU_OK;
}

void PeerMemory::close_all() {
  std::lock_guard lock(mutex_);
  for (auto& [key, peer] : peers_) munmap(peer.base, peer.bytes);
  peers_.clear();
  imports_.clear();
}

}  // namespace npu::host
