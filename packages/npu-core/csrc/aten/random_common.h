#pragma once
// What the random ops share.  A call reserves its words on the calling thread, so results depend on (seed, offset)
// only: not on timing, stream, layout or number of threads.
#include <ATen/Dispatch.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>

#include "kernel_arguments.h"
#include "launch_op.h"
#include "philox.h"
#include "runtime/generator.h"

namespace npu::aten {

using OptGenerator = std::optional<at::Generator>;

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

// body(begin, end) for parts of [0, count), at least `grain` long, on the engine's team.  at::parallel_for would be
// compiled into this library and know no OpenMP here; this is the one inside torch.
template <class Body>
void in_parallel(std::int64_t count, std::int64_t grain, const Body& body) {
  if (count <= grain) {
    if (count > 0) body(std::int64_t{0}, count);
    return;
  }
  struct Call {
    const Body& body;
    std::mutex mutex;
    std::exception_ptr error;
  } call{body, {}, nullptr};
  const auto run = [](std::int64_t begin, std::int64_t end, void* context) {
    Call& c = *static_cast<Call*>(context);
    try {
      c.body(begin, end);
    } catch (...) {
      std::lock_guard lock(c.mutex);
      if (!c.error) c.error = std::current_exception();
    }
  };
  TORCH_CHECK(torch_parallel_for(0, count, grain, run, &call) == 0, "torch_parallel_for failed over ", count, " items");
  if (call.error) std::rethrow_exception(call.error);
}

// body(draw) for the chunks of `count` values.
template <class Body>
void for_chunks(std::int64_t count, PhiloxState state, const Body& body) {
  const std::int64_t chunks = (count + philox::kChunk - 1) / philox::kChunk;
  in_parallel(chunks, /*grain=*/4, [&](std::int64_t from, std::int64_t to) {
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
