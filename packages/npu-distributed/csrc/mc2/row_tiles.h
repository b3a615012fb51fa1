// Cuts a matrix into tiles of rows, so that one is communicated while the next one is computed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace npu::distributed {

struct RowTile {
  int64_t begin;
  int64_t rows;
};

/// Below this a tile's communication takes no longer than its two meetings of all ranks.
inline constexpr int64_t kTileBytes = int64_t{2} << 20;
/// What cannot be hidden is the communication of the last tile; more tiles than this hide no more worth their cost.
inline constexpr int64_t kMostTiles = 8;

/// Tiles of `rows` rows that are communicated as `row_bytes` bytes each; at least one.  Every rank must come to the
/// same tiles, so they depend on nothing else.
inline std::vector<RowTile> RowTiles(int64_t rows, int64_t row_bytes) {
  constexpr int64_t kMultiple = 32;  // blocks of rows that matrix products work in
  const int64_t count = std::clamp<int64_t>(rows * row_bytes / kTileBytes, 1, kMostTiles);
  const int64_t even = (rows + count - 1) / count;
  const int64_t step = std::max<int64_t>(kMultiple, (even + kMultiple - 1) / kMultiple * kMultiple);
  std::vector<RowTile> tiles;
  for (int64_t begin = 0; begin < rows; begin += step) tiles.push_back({begin, std::min(step, rows - begin)});
  if (tiles.empty()) tiles.push_back({0, 0});
  return tiles;
}

}  // namespace npu::distributed
