#pragma once
// One sample of distributions that need rejection, in double.
#include "philox_stream.h"

namespace npu::aten {

// Logarithm of a gamma(shape, scale 1) number; shape >= 0, -inf for 0.
double sample_log_gamma(double shape, philox::Stream& stream);
// rate >= 0
double sample_poisson(double rate, philox::Stream& stream);
// Successes in floor(count) trials; 0 for count < 1 or p <= 0, all for p >= 1.
double sample_binomial(double count, double p, philox::Stream& stream);

}  // namespace npu::aten
