#pragma once
#include <cstdint>

#include "runtime/generator.h"

namespace npu::aten {

// torch's CPU kernels take a CPU generator: its seed, from the Philox range that the call has reserved.
inline std::uint64_t cpu_seed(const PhiloxState& state) {
  std::uint64_t mixed = state.seed + 0x9E3779B97F4A7C15ull * (state.offset + 1);
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9ull;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBull;
  return mixed ^ (mixed >> 31);
}

}  // namespace npu::aten
