#pragma once
#include <c10/core/CachingDeviceAllocator.h>

#include <string>
#include <vector>

#include "export.h"
#include "stream.h"

namespace npu {

// The caching allocator of every npu device, registered as torch's allocator for PrivateUse1.  Blocks are reused in
// stream order: a freed block may be handed out again at once for the same stream, because later work of that stream
// runs after the work that used it.
class NPU_RUNTIME_API CachingAllocator : public c10::DeviceAllocator {
 public:
  // c10::Allocator: current device, current stream.
  c10::DataPtr allocate(size_t bytes) override = 0;
  // A given stream (its device).  bytes == 0 gives an empty DataPtr of the device.
  virtual c10::DataPtr allocate_on(size_t bytes, Stream* stream) = 0;

  virtual void* raw_allocate(size_t bytes, Stream* stream) = 0;
  // Throws "invalid device pointer" for an address it did not hand out.
  virtual void raw_free(void* address) = 0;

  // The block holding `address` waits, when freed, for work queued so far on `stream`.
  virtual void record_stream(const void* address, Stream* stream) = 0;
  virtual void erase_stream(const void* address, Stream* stream) = 0;
  // Start and usable size of the live block holding `address`; false when it is not ours.
  virtual bool find_block(const void* address, void** base, size_t* size) = 0;
  // The streams whose work may use the live block holding `address`: its own and the recorded ones.  Empty when it is
  // not ours.
  virtual std::vector<Stream*> users_of(const void* address) = 0;

  virtual void set_memory_fraction(double fraction, int device) = 0;
  virtual double memory_fraction(int device) = 0;
  virtual std::vector<c10::CachingDeviceAllocator::SegmentInfo> snapshot() = 0;
};

NPU_RUNTIME_API CachingAllocator& caching_allocator();

}  // namespace npu
