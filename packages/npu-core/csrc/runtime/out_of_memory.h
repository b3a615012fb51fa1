#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "allocator_config.h"
#include "export.h"

namespace npu {

// Blocks of one kind, counted.
struct BlockTotals {
  std::size_t count = 0, bytes = 0, largest = 0;

  void add(std::size_t size) {
    ++count;
    bytes += size;
    largest = size > largest ? size : largest;
  }
};

// What was known when a request could not be served.  Sizes are bytes.
struct OutOfMemoryFacts {
  int device = 0;
  std::int64_t stream_id = 0;
  std::size_t requested = 0;  // by the caller
  std::size_t block = 0;      // with padding and rounding
  std::size_t growth = 0;     // what the driver was asked for
  std::size_t total = 0, free = 0;
  std::size_t limit = AllocatorConfig::kUnlimited;
  double fraction = 1.0;
  std::size_t allocated = 0, active = 0, reserved = 0;
  BlockTotals cached_here;       // free blocks the request may use: same stream, same pool
  BlockTotals cached_elsewhere;  // free blocks of other streams or of the pool for other sizes
  BlockTotals waiting;           // freed, but other streams still use them
  BlockTotals private_pools;     // segments of memory pools; they serve their own users only
  std::size_t private_allocated = 0;
  bool in_private_pool = false;  // the request was for one
  bool rejected = false;         // throw_on_npumalloc_oom: nothing was given back first
  bool expandable = false;
  bool emulated = false;
  std::string driver_text;  // why the driver refused; empty when it was not asked

  bool limited() const { return limit != AllocatorConfig::kUnlimited && reserved + growth > limit; }
  bool fragmented() const { return cached_here.bytes + free >= block && reserved - active >= block; }
};

// The text of the error: one line in the form users' tools know, then what they can do about it.
std::string describe(const OutOfMemoryFacts& facts);

// Called on the thread that ran out of memory, without locks, before the exception is thrown: device, bytes requested,
// bytes the process may hold (its limit, or else the device's memory), bytes free on the device.  Stays for ever.
using OutOfMemoryObserver =
    std::function<void(int device, std::size_t requested, std::size_t capacity, std::size_t free)>;
NPU_RUNTIME_API void attach_out_of_memory_observer(OutOfMemoryObserver observer);
void notify_out_of_memory(const OutOfMemoryFacts& facts);

}  // namespace npu
