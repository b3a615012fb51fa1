/* npu/kernels/indexed_writes.h: scatter loops of tasks: indices that may be wrong, places that may repeat.
 *
 * Writer number i writes one box of memory at the place locate(i), an offset in bytes.  Writers of one place run in the
 * order of their numbers for every number of threads, so the last one wins.  Two steps, both in the task:
 *
 *   Survey found;                                       // all indices are looked at before the first write
 *   status = survey_writers(writers, locate, found, error);
 *   if (found.first_bad < writers) return ...;          // the op words the message
 *   return write_in_order(writers, found.rising, units, bytes, base, locate, write, error);
 */
#ifndef NPU_KERNELS_INDEXED_WRITES_H_
#define NPU_KERNELS_INDEXED_WRITES_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "npu/kernels/parallel.h"
#include "npu/kernels/stable_tensor.h"
#include "npu/kernels/streaming.h"

namespace npu::kernels {

/// Answers of locate() that are no place.
enum : int64_t { kSkipped = -1, kOutOfRange = -2 };

/// int32 or int64 indices, contiguous.
struct Indices {
  const void* data;
  bool wide;  ///< int64

  int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

struct Survey {
  int64_t first_bad;  ///< the first writer that is out of range, else the number of writers
  bool rising;        ///< every place is greater than the one before, so no two writers meet
};

/// Bytes worth a thread.
constexpr int64_t kBytesPerThread = 1 << 16;

template <class Locate>
npu_status survey_writers(int64_t writers, const Locate& locate, Survey& found, npu_error* error) {
  std::atomic<int64_t> first_bad{writers};
  std::atomic<bool> rising{true};
  auto body = [&](int64_t begin, int64_t end) {
    int64_t previous = kSkipped;
    for (int64_t i = begin; i-- > 0;) {
      if ((previous = locate(i)) >= 0) break;
    }
    bool rises = true;
    for (int64_t i = begin; i < end; ++i) {
      int64_t place = locate(i);
      if (place == kOutOfRange) {
        int64_t known = first_bad.load(std::memory_order_relaxed);
        while (i < known && !first_bad.compare_exchange_weak(known, i, std::memory_order_relaxed)) {
        }
        return;
      }
      if (place == kSkipped) continue;
      rises &= place > previous;
      previous = place;
    }
    if (!rises) rising.store(false, std::memory_order_relaxed);
  };
  npu_status status = parallel_for(writers, 8192, body, error);
  found = {first_bad.load(), rising.load()};
  return status;
}

/// Places that may be written twice belong to one of kShares shares, and each share is worked on by one thread, in
/// order. A hash, because neighbouring places are often written together.
constexpr int64_t kShares = 64;

inline int64_t share_of(int64_t place) {
  return static_cast<int64_t>((static_cast<uint64_t>(place) * 0x9e3779b97f4a7c15u) >> 58);
}

/// Shares worth a thread when all of them write `total` bytes.
inline int64_t grain_of_shares(int64_t total) {
  return total > kBytesPerThread ? std::max<int64_t>(kShares * kBytesPerThread / total, 1) : kShares;
}

/// Calls write(i, place, begin, end) until every writer has written its `units`, of `bytes` bytes together.
///
/// `distinct`: no two writers share memory.  Otherwise every place, cut into pieces, belongs to a share, whose thread
/// goes over all writers in order.  Places that do not lie in range any more (another stream
/// has overwritten the indices since) are left out.
///
/// `base` is where places count from: the first lines of places to come are fetched ahead.  NULL when the writes bypass
/// the caches.
template <class Locate, class Write>
npu_status write_in_order(int64_t writers, bool distinct, int64_t units, int64_t bytes, const char* base,
                          const Locate& locate, const Write& write, npu_error* error) {
  if (writers <= 0 || bytes <= 0) return NPU_OK;
  constexpr int64_t kAhead = 4;
  const int64_t lines = base == nullptr ? 0 : std::min<int64_t>(bytes / 64, 4);
  auto fetch = [&](int64_t place) {
    for (int64_t line = 0; line < lines; ++line) __builtin_prefetch(base + place + line * 64, 1);
  };
  if (distinct) {
    auto body = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin / units; begin < end; ++i) {
        int64_t first = begin - i * units, last = std::min(units, end - i * units);
        int64_t place = locate(i);
        if (lines > 0 && end > (i + kAhead) * units) {
          int64_t next = locate(i + kAhead);
          if (next >= 0) fetch(next);
        }
        if (place >= 0) write(i, place, first, last);
        begin = (i + 1) * units;
      }
      npu_stream_fence();
    };
    int64_t grain = kBytesPerThread * units / bytes;
    // A cut within a run should not fall into a cache line.
    return parallel_for(writers * units, std::max<int64_t>(grain, 1), body, error);
  }
  constexpr int64_t kPiece = 1 << 14;
  int64_t pieces = std::clamp<int64_t>(bytes / kPiece, 1, units);
  auto body = [&](int64_t begin, int64_t end) {
    bool all = begin == 0 && end == kShares;
    for (int64_t i = 0; i < writers; ++i) {
      if (lines > 0 && i + kAhead < writers) {
        int64_t next = locate(i + kAhead), share = next < 0 ? -1 : share_of(next);
        if (share >= begin && share < end) fetch(next);
      }
      int64_t place = locate(i);
      if (place < 0) continue;
      if (all) {
        write(i, place, int64_t{0}, units);
        continue;
      }
      for (int64_t p = 0; p < pieces; ++p) {
        int64_t share = share_of(place + p);
        if (share >= begin && share < end) write(i, place, units * p / pieces, units * (p + 1) / pieces);
      }
    }
    npu_stream_fence();
  };
  return parallel_for(kShares, grain_of_shares(writers * bytes), body, error);
}

/// call_operator() for operators over index tensors: a bad index stays an IndexError, of which the dispatcher keeps
/// only the text.
template <class... Arguments>
void call_indexed(const char* name, const Arguments&... arguments) {
  try {
    call_operator(name, arguments...);
  } catch (const std::runtime_error& error) {
    if (std::strstr(error.what(), "is out of range: expected") != nullptr) throw std::out_of_range(error.what());
    throw;
  }
}

/// A copy of `bytes` bytes by all threads.
inline npu_status copy_bytes(void* to, const void* from, int64_t bytes, npu_error* error) {
  auto body = [&](int64_t begin, int64_t end) {
    char* t = static_cast<char*>(to) + begin;
    const char* f = static_cast<const char*>(from) + begin;
    if (bytes < NPU_STREAM_BYTES) {
      std::memcpy(t, f, static_cast<size_t>(end - begin));
    } else {
      npu_stream_copy(t, f, end - begin);
      npu_stream_fence();
    }
  };
  return parallel_for(bytes, kBytesPerThread, body, error);
}

}  // namespace npu::kernels

#endif  // NPU_KERNELS_INDEXED_WRITES_H_
