#pragma once
// What the random ops share.  A call reserves its words on the calling thread, so results depend on (seed, offset)
// only: not on timing, stream, layout or number of threads.
#include <ATen/Dispatch.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "launch_op.h"
#include "philox.h"
#include "runtime/generator.h"

namespace npu::aten {

using OptGenerator = std::optional<at::Generator>;

inline at::Tensor& mut(const at::Tensor& t) { return const_cast<at::Tensor&>(t); }

// Words for `count` values of `words` words each, in whole blocks.
inline PhiloxState reserve_words(const at::Tensor& on, const OptGenerator& generator, std::int64_t count,
                                 int words = 1) {
  const auto block = static_cast<std::uint64_t>(philox::kBlock);
  const auto needed = static_cast<std::uint64_t>(count) * static_cast<std::uint64_t>(words);
  return reserve_philox(generator, on.device().index(), (needed + block - 1) / block * block);
}

// Words for one value of each element of `self`: doubles take two.
inline PhiloxState reserve_for(const at::Tensor& self, const OptGenerator& generator) {
  return reserve_words(self, generator, self.numel(), self.scalar_type() == at::kDouble ? 2 : 1);
}

// body(draw) for the chunks of `count` values.
template <class Body>
void for_chunks(std::int64_t count, PhiloxState state, const Body& body) {
  const std::int64_t chunks = (count + philox::kChunk - 1) / philox::kChunk;
  at::parallel_for(0, chunks, /*grain_size=*/4, [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t c = from; c < to; ++c) {
      const std::int64_t begin = c * philox::kChunk;
      body(philox::Draw{state.seed, state.offset, begin, std::min(philox::kChunk, count - begin)});
    }
  });
}

// Runs `fill` on self, or on a contiguous temporary that is copied into it.
template <class Fill>
void on_contiguous(const at::Tensor& self, const Fill& fill) {
  if (self.is_contiguous()) {
    fill(self);
  } else {
    auto dense = at::empty(self.sizes(), self.options());
    fill(dense);
    mut(self).copy_(dense);
  }
}

// Row of `dtype` in the tables of Philox kernels, or -1.
inline int float_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return philox::kFloat32;
    case at::kBFloat16:
      return philox::kBfloat16;
    case at::kHalf:
      return philox::kFloat16;
    default:
      return -1;
  }
}

// In [0, 1) with 53 bits, and in (0, 1).
inline double unit_double(std::uint64_t wide) { return static_cast<double>(wide >> 11) * 0x1p-53; }
inline double open_unit_double(std::uint64_t wide) { return (static_cast<double>(wide >> 12) + 0.5) * 0x1p-52; }

inline void check_float_result(const at::Tensor& self, const char* op) {
  const auto dtype = self.scalar_type();
  TORCH_CHECK_NOT_IMPLEMENTED(float_type(dtype) >= 0 || dtype == at::kDouble, op,
                              ": expected self to be float32, float64, float16 or bfloat16, but got ", dtype,
                              "; convert the result of a floating point tensor instead");
  at::assert_no_internal_overlap(self);
}

// Standard-normal numbers times std plus mean.  The engine's part of normal_, shared by its relatives.
void fill_normal(const at::Tensor& self, double mean, double std, PhiloxState state);

}  // namespace npu::aten
