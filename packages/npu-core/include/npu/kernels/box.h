/* npu/kernels/box.h: copies of boxes of memory between tensors of any strides, for the tasks of ops.
 *
 * A box is one part of a tensor (a row, a slice, a token's heads) as loops around runs of bytes that are contiguous on
 * both sides.  Dims are added from the innermost to the outermost and merge where they can:
 *
 *   Box box = box_of_run(element_size);
 *   for (d = dims - 1; d >= 1; --d) add_dim(box, sizes[d], to_strides[d], from_strides[d]);   // bytes
 *   copy_box(box, to, from, 0, box.units());
 */
#ifndef NPU_KERNELS_BOX_H_
#define NPU_KERNELS_BOX_H_

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "npu/kernels/streaming.h"
#include "npu/kernels/strided.h"

namespace npu::kernels {

/// Flat, so that it may stand in a payload.  Dim 0 is the innermost; sizes, strides and the run are bytes.
struct Box {
  int64_t run;  ///< contiguous on both sides
  int32_t dims;
  int32_t streams;  ///< whether runs bypass the caches (streaming.h)
  int64_t sizes[NPU_MAX_DIMS], to[NPU_MAX_DIMS], from[NPU_MAX_DIMS];

  /// What a box can be cut into: its outermost dim, or the bytes of its one run.
  int64_t units() const { return dims > 0 ? sizes[dims - 1] : run; }

  int64_t bytes() const {
    int64_t count = run;
    for (int32_t d = 0; d < dims; ++d) count *= sizes[d];
    return count;
  }
};

inline Box box_of_run(int64_t bytes) {
  Box box{};
  box.run = bytes;
  return box;
}

/// Adds a dim outside of those the box has.
inline void add_dim(Box& box, int64_t size, int64_t to_stride, int64_t from_stride) {
  if (size == 1) return;
  if (box.dims == 0 && to_stride == box.run && from_stride == box.run) {
    box.run *= size;
    return;
  }
  int32_t last = box.dims - 1;
  if (last >= 0 && to_stride == box.to[last] * box.sizes[last] && from_stride == box.from[last] * box.sizes[last]) {
    box.sizes[last] *= size;
    return;
  }
  if (box.dims == NPU_MAX_DIMS) throw std::runtime_error("a tensor of more than 8 dims that cannot be merged");
  box.sizes[box.dims] = size;
  box.to[box.dims] = to_stride;
  box.from[box.dims++] = from_stride;
}

/// Lets copies bypass the caches where that pays for a task that writes `total` bytes.
inline void stream_if_large(Box& box, int64_t total) {
  box.streams = total >= NPU_STREAM_BYTES && box.run >= NPU_STREAM_ROW;
}

template <int64_t kBytes>
inline void copy_short_runs(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t count) {
  for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * to_stride, from + i * from_stride, kBytes);
}

/// Copies `count` runs of `run` bytes.
inline void copy_runs(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t count, int64_t run) {
  switch (run) {
    case 1:
      return copy_short_runs<1>(to, to_stride, from, from_stride, count);
    case 2:
      return copy_short_runs<2>(to, to_stride, from, from_stride, count);
    case 4:
      return copy_short_runs<4>(to, to_stride, from, from_stride, count);
    case 8:
      return copy_short_runs<8>(to, to_stride, from, from_stride, count);
    case 16:
      return copy_short_runs<16>(to, to_stride, from, from_stride, count);
    case 32:
      return copy_short_runs<32>(to, to_stride, from, from_stride, count);
    default:
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(to + i * to_stride, from + i * from_stride, static_cast<size_t>(run));
      }
  }
}

/// Calls runs(to, to_stride, from, from_stride, count) for every innermost loop under the steps [begin, end) of dim
/// `d`.
template <class Runs>
void walk_box(const Box& box, int32_t d, char* to, const char* from, int64_t begin, int64_t end, const Runs& runs) {
  to += begin * box.to[d];
  from += begin * box.from[d];
  if (d == 0) {
    runs(to, box.to[0], from, box.from[0], end - begin);
    return;
  }
  for (int64_t i = begin; i < end; ++i) {
    walk_box(box, d - 1, to, from, 0, box.sizes[d - 1], runs);
    to += box.to[d];
    from += box.from[d];
  }
}

/// Copies the units [begin, end) of the box.
inline void copy_box(const Box& box, char* to, const char* from, int64_t begin, int64_t end) {
  if (box.dims == 0) {
    if (box.streams) npu_stream_copy(to + begin, from + begin, end - begin);
    else std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin));
    return;
  }
  auto runs = [&](char* t, int64_t to_stride, const char* f, int64_t from_stride, int64_t count) {
    if (!box.streams) return copy_runs(t, to_stride, f, from_stride, count, box.run);
    for (int64_t i = 0; i < count; ++i) npu_stream_copy(t + i * to_stride, f + i * from_stride, box.run);
  };
  walk_box(box, box.dims - 1, to, from, begin, end, runs);
}

}  // namespace npu::kernels

#endif  // NPU_KERNELS_BOX_H_
