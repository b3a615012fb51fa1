#pragma once
#include "random_common.h"

namespace npu::aten {

// How many of the 2^32 words stand for success.
inline std::uint64_t bernoulli_words(double p) { return static_cast<std::uint64_t>(p * 0x1p32 + 0.5); }

// 1 with probability p, else 0, in the dtype of self.  Runs on the engine.
void fill_bernoulli(const at::Tensor& self, double p, PhiloxState state);

}  // namespace npu::aten
