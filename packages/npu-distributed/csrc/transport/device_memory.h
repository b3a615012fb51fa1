// Memory that crosses process borders: the three calls of the runtime this wheel needs, and a cache over imports.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "npu/driver.h"

namespace npu::distributed {

/// Export and import of device memory (see driver.h).  Tests put their own memory behind it.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  /// Each throws CommError on failure.
  virtual npu_memory_handle Export(const void* address, size_t bytes) = 0;
  virtual void* Import(const npu_memory_handle& handle, size_t bytes) = 0;
  virtual void Close(void* address) noexcept = 0;
};

/// How many handles of a cache stay because they were used last; at most twice as many are held.  A training step uses
/// its buffers again, and a program that keeps sending new ones does not grow a cache.
inline constexpr size_t kMostRecentHandles = 1024;

/// Handles of this process's memory.  Making one asks the operating system, which takes longer than a short collective.
class ExportCache {
 public:
  explicit ExportCache(DeviceMemory& memory) : memory_(memory) {}

  npu_memory_handle Handle(const void* address, size_t bytes);

 private:
  struct Place {
    const void* address;
    size_t bytes;
    bool operator==(const Place&) const = default;
  };
  struct Hash {
    size_t operator()(const Place& place) const noexcept;
  };
  using Table = std::unordered_map<Place, npu_memory_handle, Hash>;

  DeviceMemory& memory_;
  Table recent_;
  Table older_;
};

/// Imports of one group, kept open so that a buffer used again costs one hash lookup.
///
/// Equal handles name equal memory for as long as the exporter lives: a handle is a place in an arena, not a lifetime.
class ImportCache {
 public:
  ImportCache(DeviceMemory& memory, int ranks) : memory_(memory), imports_(static_cast<size_t>(ranks)) {}
  ~ImportCache();
  ImportCache(const ImportCache&) = delete;
  ImportCache& operator=(const ImportCache&) = delete;

  void* Address(int rank, const npu_memory_handle& handle, size_t bytes);

 private:
  struct Hash {
    size_t operator()(const npu_memory_handle& handle) const noexcept;
  };
  struct Equal {
    bool operator()(const npu_memory_handle& a, const npu_memory_handle& b) const noexcept {
      return std::memcmp(a.bytes, b.bytes, sizeof a.bytes) == 0;
    }
  };
  struct Import {
    void* address;
    size_t bytes;
  };
  using Table = std::unordered_map<npu_memory_handle, Import, Hash, Equal>;
  /// When `recent` is full it becomes `older`, and what was not used since is closed.  Never all at once: closing the
  /// last import of a process unmaps its memory, and mapping it again costs a page fault per page.
  struct Generations {
    Table recent;
    Table older;
  };

  void Drop(Table& table) noexcept;

  DeviceMemory& memory_;
  std::vector<Generations> imports_;
};

}  // namespace npu::distributed
