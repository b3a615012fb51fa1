#include "random_samplers.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace npu::aten {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// log(k!) less Stirling's (k + 1/2) log k - k + log(2 pi) / 2, for integers k >= 1.
double stirling_error(double k) {
  if (k < 16.0) {
    int sign = 0;
    return lgamma_r(k + 1.0, &sign) - ((k + 0.5) * std::log(k) - k + 0.5 * std::log(2.0 * M_PI));
  }
  const double k2 = k * k;
  return (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * k2)) / k2) / k;
}

// k log(k / mean) + mean - k without cancellation where k is near the mean (the "deviance" of Loader 2000).
double deviance(double k, double mean) {
  const double x = (k - mean) / mean;
  if (std::abs(x) > 0.1) return k * std::log(k / mean) + mean - k;
  // (1 + x) log(1 + x) - x = sum over i >= 2 of (-x)^i / (i (i - 1))
  double sum = 0.0, power = x * x;
  for (int i = 2; i < 20; ++i) {
    sum += power / (i * (i - 1));
    power *= -x;
  }
  return mean * sum;
}

double log_poisson(double k, double rate) {
  if (k == 0.0) return -rate;
  return -stirling_error(k) - deviance(k, rate) - 0.5 * std::log(2.0 * M_PI * k);
}

double log_binomial(double k, double n, double p) {
  if (k == 0.0) return n * std::log1p(-p);
  if (k == n) return n * std::log(p);
  return stirling_error(n) - stirling_error(k) - stirling_error(n - k) - deviance(k, n * p) -
         deviance(n - k, n * (1.0 - p)) + 0.5 * std::log(n / (2.0 * M_PI * k * (n - k)));
}

// Below this mean, adding up probabilities until they exceed a uniform number is fastest.
constexpr double kSmallMean = 10.0;

}  // namespace

// Marsaglia and Tsang, "A simple method for generating gamma variables" (2000).
double sample_log_gamma(double shape, philox::Stream& stream) {
  if (std::isnan(shape) || shape == kInfinity) return shape;
  if (shape == 0.0) return -kInfinity;
  double boost = 0.0;
  if (shape < 1.0) {
    boost = std::log(stream.open_unit()) / shape;
    shape += 1.0;
  }
  const double d = shape - 1.0 / 3.0, c = 1.0 / std::sqrt(9.0 * d);
  for (;;) {
    const double x = stream.normal(), root = 1.0 + c * x;
    if (root <= 0.0) continue;
    const double log_v = 3.0 * std::log(root), v = root * root * root;
    if (std::log(stream.open_unit()) < 0.5 * x * x + d * (1.0 - v + log_v)) return boost + std::log(d) + log_v;
  }
}

// Large rates: Hoermann, "The transformed rejection method for generating Poisson random variables" (1993), PTRS.
double sample_poisson(double rate, philox::Stream& stream) {
  if (std::isnan(rate) || rate == kInfinity || rate == 0.0) return rate;
  if (rate < kSmallMean) {
    double left = stream.unit(), probability = std::exp(-rate);
    double k = 0.0;
    while (left >= probability && probability > 0.0) {
      left -= probability;
      k += 1.0;
      probability *= rate / k;
    }
    return k;
  }
  const double b = 0.931 + 2.53 * std::sqrt(rate), a = -0.059 + 0.02483 * b;
  const double inverse_alpha = 1.1239 + 1.1328 / (b - 3.4), v_r = 0.9277 - 3.6224 / (b - 2.0);
  for (;;) {
    const double u = stream.open_unit() - 0.5, v = stream.open_unit();
    const double us = 0.5 - std::abs(u);
    const double k = std::floor((2.0 * a / us + b) * u + rate + 0.43);
    if (us >= 0.07 && v <= v_r) return k;
    if (k < 0.0 || (us < 0.013 && v > us)) continue;
    if (std::log(v * inverse_alpha / (a / (us * us) + b)) <= log_poisson(k, rate)) return k;
  }
}

// Large means: Hoermann, "The generation of binomial random variates" (1993), BTRS.
double sample_binomial(double count, double p, philox::Stream& stream) {
  if (std::isnan(count) || std::isnan(p)) return std::numeric_limits<double>::quiet_NaN();
  const double n = std::floor(count);
  if (n <= 0.0 || p <= 0.0) return 0.0;
  if (p >= 1.0 || n == kInfinity) return n;
  if (p > 0.5) return n - sample_binomial(n, 1.0 - p, stream);
  if (n * p < kSmallMean) {
    const double odds = p / (1.0 - p);
    double left = stream.unit(), probability = std::exp(n * std::log1p(-p));
    double k = 0.0;
    while (left >= probability && k < n && probability > 0.0) {
      left -= probability;
      k += 1.0;
      probability *= (n - k + 1.0) / k * odds;
    }
    return k;
  }
  const double spread = std::sqrt(n * p * (1.0 - p));
  const double b = 1.15 + 2.53 * spread, a = -0.0873 + 0.0248 * b + 0.01 * p;
  const double v_r = 0.92 - 4.2 / b, alpha = (2.83 + 5.1 / b) * spread;
  const double at_mode = log_binomial(std::floor((n + 1.0) * p), n, p);
  for (;;) {
    const double u = stream.open_unit() - 0.5, v = stream.open_unit();
    const double us = 0.5 - std::abs(u);
    const double k = std::floor((2.0 * a / us + b) * u + n * p + 0.5);
    if (us >= 0.07 && v <= v_r) return k;
    if (k < 0.0 || k > n) continue;
    if (std::log(v * alpha / (a / (us * us) + b)) <= log_binomial(k, n, p) - at_mode) return k;
  }
}

}  // namespace npu::aten
