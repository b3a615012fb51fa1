// Allocates and frees through torch's registry of allocators, which is how tensors of every device get their memory,
// in a loop that no interpreter slows down.  Called through ctypes by benchmarks/suites/allocator.py.
#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

constexpr auto kNpu = c10::DeviceType::PrivateUse1;

c10::Stream stream_of(std::int64_t id) { return c10::Stream::unpack3(id, 0, kNpu); }

}  // namespace

extern "C" {

// `live` blocks exist at a time; 1 = each is freed before the next is allocated.
void allocate_free(int on_npu, std::size_t bytes, std::int64_t loops, std::size_t live) {
  c10::Allocator* allocator = c10::GetAllocator(on_npu != 0 ? kNpu : c10::DeviceType::CPU);
  std::vector<c10::DataPtr> held(live);
  for (std::int64_t i = 0; i < loops; ++i) {
    c10::DataPtr& slot = held[static_cast<std::size_t>(i) % live];
    slot.clear();
    slot = allocator->allocate(bytes);
  }
}

// Each block on the next of `count` streams of npu:0.
void allocate_free_on_streams(std::size_t bytes, std::int64_t loops, const std::int64_t* ids, std::size_t count) {
  const auto* guard = c10::impl::getDeviceGuardImpl(kNpu);
  c10::Allocator* allocator = c10::GetAllocator(kNpu);
  const c10::Stream before = guard->getStream(c10::Device(kNpu, 0));
  for (std::int64_t i = 0; i < loops; ++i) {
    guard->exchangeStream(stream_of(ids[static_cast<std::size_t>(i) % count]));
    allocator->allocate(bytes).clear();
  }
  guard->exchangeStream(before);
}

// Each block is also used on the stream `id`, so that its free waits for that stream.
void allocate_record_free(std::size_t bytes, std::int64_t loops, std::int64_t id) {
  auto* allocator = static_cast<c10::DeviceAllocator*>(c10::GetAllocator(kNpu));
  for (std::int64_t i = 0; i < loops; ++i) {
    c10::DataPtr block = allocator->allocate(bytes);
    allocator->recordStream(block, stream_of(id));
  }
}

}  // extern "C"
