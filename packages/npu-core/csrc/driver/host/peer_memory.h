// Memory of other processes: handles that name a range, and the ranges imported here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>

#include "arena.h"
#include "npu/driver.h"

namespace npu::host {

class PeerMemory {
 public:
  npu_status export_range(int device, Arena& arena, const void* address, size_t bytes, npu_memory_handle* handle);
  // `arena_of` gives this process's arena of a device number, or nullptr: for handles that are our own.
  template <typename ArenaOf>
  npu_status import_range(const npu_memory_handle* handle, ArenaOf&& arena_of, void** address, size_t* bytes) {
    Handle named;
    npu_status status = decode(handle, &named);
    if (status != NPU_OK) return status;
    *bytes = named.bytes;
    return is_own(named) ? import_own(named, arena_of(named.device), address) : import_peer(named, address);
  }
  npu_status close_range(void* address);
  void close_all();

 private:
  // The 64 bytes of an npu_memory_handle.
  struct Handle {
    char magic[8];
    uint64_t start_time;  // of the exporting process: its number alone may be reused
    uint64_t inode;
    uint64_t filesystem;
    uint64_t offset;
    uint64_t bytes;
    int32_t pid;
    int32_t fd;
    int32_t device;
    uint32_t checksum;
  };
  static_assert(sizeof(Handle) == sizeof(npu_memory_handle));

  // The whole arena of a peer, mapped once however many of its ranges are imported.
  using PeerKey = std::tuple<int32_t, uint64_t, uint64_t, uint64_t>;  // pid, start time, inode, file system
  struct Peer {
    char* base = nullptr;
    size_t bytes = 0;
    size_t imports = 0;
  };
  struct Import {
    bool own = false;
    PeerKey peer;
    size_t count = 0;
  };

  static uint32_t checksum(const Handle& handle);
  static npu_status decode(const npu_memory_handle* handle, Handle* decoded);
  static bool is_own(const Handle& handle);
  npu_status import_own(const Handle& handle, Arena* arena, void** address);
  npu_status import_peer(const Handle& handle, void** address);
  static npu_status map_peer(const Handle& handle, Peer* peer);

  std::mutex mutex_;
  std::map<PeerKey, Peer> peers_;
  std::map<void*, Import> imports_;
};

}  // namespace npu::host
