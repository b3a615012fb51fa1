// How work is cut between ranks, and the sizes from which data travels in one way or another.
#pragma once

#include <algorithm>
#include <cstddef>

namespace npu::distributed {

/// Data of one rank up to this size travels with the records of a call.  A partial result of it is at most four times
/// as large (int8 averages add up in int32), and several ranks may bring some, hence the second bound.
inline constexpr size_t kSmallData = 4096;
inline constexpr size_t kSmallPayload = 16384;

/// Bytes that move at a time when a host passes on what it receives.
inline constexpr size_t kMoveChunk = 4u << 20;

struct Share {
  size_t begin;
  size_t count;
};

/// Share number `index` of `count` elements in `shares` shares that begin at multiples of `unit`.
inline Share ShareOf(int index, int shares, size_t count, size_t unit) {
  const size_t units = (count + unit - 1) / unit;
  const auto at = [&](int i) {
    return std::min(count, units * static_cast<size_t>(i) / static_cast<size_t>(shares) * unit);
  };
  return {at(index), at(index + 1) - at(index)};
}

}  // namespace npu::distributed
