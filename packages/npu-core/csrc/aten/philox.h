#pragma once
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// Value i of a call is lane i % 4 of counter (offset / 4 + i / 4) under key `seed`: the same for any thread count.
#include <cstddef>
#include <cstdint>

namespace npu::aten::philox {

// Values are produced in chunks of this many, each starting at a multiple of it.
inline constexpr std::int64_t kChunk = 4096;

// The `count` (<= kChunk) values from index `begin` (a multiple of 4) on.
void bits(std::uint32_t* out, std::int64_t count, std::uint64_t seed, std::uint64_t offset, std::int64_t begin);
// Uniform in [0, 1) with 24 random bits.
void uniform(float* out, std::int64_t count, std::uint64_t seed, std::uint64_t offset, std::int64_t begin);
// Standard normal by Box-Muller; u1 in (0, 1] so that the logarithm is finite.
void normal(float* out, std::int64_t count, std::uint64_t seed, std::uint64_t offset, std::int64_t begin);

}  // namespace npu::aten::philox
