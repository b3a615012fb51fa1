// What two sides of a transfer compare: how much memory, and in which order its elements lie there.
#pragma once

#include <cstdint>

namespace npu::distributed {

/// Orders in which the elements of a tensor lie in memory, as bits: a tensor with one channel has several at once.
using LayoutSet = uint32_t;
inline constexpr LayoutSet kContiguous = 1;
inline constexpr LayoutSet kChannelsLast = 2;
inline constexpr LayoutSet kChannelsLast3d = 4;
/// Of memory that is no tensor's, and of nothing.
inline constexpr LayoutSet kAnyLayout = 7;

/// "contiguous", "channels_last" or "channels_last_3d": the first one of the set.
const char* LayoutName(LayoutSet layouts);

struct Extent {
  uint64_t bytes = 0;
  LayoutSet layouts = kAnyLayout;
};

/// Whether bytes of one may be taken for bytes of the other.
inline bool SameLayout(LayoutSet one, LayoutSet other) { return (one & other) != 0; }
inline bool Fits(const Extent& one, const Extent& other) {
  return one.bytes == other.bytes && SameLayout(one.layouts, other.layouts);
}

}  // namespace npu::distributed
