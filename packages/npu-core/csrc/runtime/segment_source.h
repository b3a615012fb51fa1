#pragma once
#include <cstddef>

#include "stream.h"

namespace npu {

// Where a pool's segments come from when not from the driver: a pluggable allocator.  Thread-safe.
class SegmentSource {
 public:
  virtual ~SegmentSource() = default;
  // nullptr when there is no memory left.  Called under a lock of the allocator: must not call back into it.
  virtual void* allocate(std::size_t bytes, int device, Stream* stream) = 0;
  virtual void free(void* address, std::size_t bytes, int device, Stream* stream) = 0;
};

}  // namespace npu
