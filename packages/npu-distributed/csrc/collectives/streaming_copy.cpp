#include "collectives/streaming_copy.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace npu::distributed {

#if defined(__x86_64__)
/// How far ahead the source is read: of 512 bytes to 4 KiB the best on a Zen 4 server, 6 to 9 % faster than without.
constexpr size_t kPrefetchBytes = 1024;
#endif

void StreamingCopy(void* to, const void* from, size_t bytes) {
  if (bytes == 0 || to == from) return;
#if defined(__x86_64__)
  // Whole cache lines of the target; vectors wider than 16 bytes are no faster here, a line is combined anyway.
  auto* target = static_cast<std::byte*>(to);
  auto* source = static_cast<const std::byte*>(from);
  const size_t head = (64 - reinterpret_cast<uintptr_t>(target) % 64) % 64;
  if (bytes < head + 64) {
    std::memcpy(target, source, bytes);
    return;
  }
  std::memcpy(target, source, head);
  size_t i = head;
  for (; i + 64 <= bytes; i += 64) {
    // The prefetchers of the CPU stop at pages, which are small in shared memory.
    _mm_prefetch(reinterpret_cast<const char*>(source + i) + kPrefetchBytes, _MM_HINT_T0);
    const auto* in = reinterpret_cast<const __m128i*>(source + i);
    auto* out = reinterpret_cast<__m128i*>(target + i);
    const __m128i a = _mm_loadu_si128(in);
    const __m128i b = _mm_loadu_si128(in + 1);
    const __m128i c = _mm_loadu_si128(in + 2);
    const __m128i d = _mm_loadu_si128(in + 3);
    _mm_stream_si128(out, a);
    _mm_stream_si128(out + 1, b);
    _mm_stream_si128(out + 2, c);
    _mm_stream_si128(out + 3, d);
  }
  std::memcpy(target + i, source + i, bytes - i);
  _mm_sfence();
#else
  std::memcpy(to, from, bytes);
#endif
}

}  // namespace npu::distributed
