/* npu/kernels/math_lanes.h: elementary functions of float32 vectors, for kernel files.
 *
 * Within 2 units in the last place unless a comment says otherwise; infinities, zeros and NaN as in C.  The
 * polynomials are least-squares fits at Chebyshev nodes of the intervals named beside them.
 */
#ifndef NPU_KERNELS_MATH_LANES_H_
#define NPU_KERNELS_MATH_LANES_H_

#include <math.h>

#include "npu/kernels/integer_lanes.h"

namespace npu {
namespace kernels {
namespace {

NPU_LANES_INLINE Floats absolute(Floats value) { return bits_as<Floats>(bits_as<Words>(value) & 0x7fffffffu); }

NPU_LANES_INLINE Floats negate(Floats value) { return bits_as<Floats>(bits_as<Words>(value) ^ 0x80000000u); }

/* a * b + c, fused where the instruction set has it. */
NPU_LANES_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

/* coefficients[0] x^(n-1) + ... + coefficients[n-1] */
template <int n>
NPU_LANES_INLINE Floats polynomial(Floats x, const float (&coefficients)[n]) {
  Floats sum = broadcast(coefficients[0]);
  for (int i = 1; i < n; ++i) sum = multiply_add(sum, x, broadcast(coefficients[i]));
  return sum;
}

NPU_LANES_INLINE Floats square_root(Floats value) {
#if defined(__AVX512F__)
  return (Floats)_mm512_sqrt_ps((__m512)value);
#elif defined(__AVX2__)
  return (Floats)_mm256_sqrt_ps((__m256)value);
#elif defined(__SSE2__)
  return (Floats)_mm_sqrt_ps((__m128)value);
#else
  for (int i = 0; i < kLanes; ++i) value[i] = sqrtf(value[i]);
  return value;
#endif
}

/* 2^n for integers n in [-126, 127]. */
NPU_LANES_INLINE Floats power_of_two(Ints n) { return bits_as<Floats>((Words)(n + 127) << 23); }

/* value 2^n for integers n in [-252, 254] or NaN; results may be denormal or infinite. */
NPU_LANES_INLINE Floats times_power_of_two(Floats value, Floats n) {
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)value, (__m512)n);
#else
  /* In two steps, because 2^n itself may be out of range. */
  Floats numbers = choose(n == n, n, Floats{});
  Ints whole = to_ints(numbers), half = whole >> 1;
  return value * power_of_two(half) * power_of_two(whole - half);
#endif
}

/* e^x.  Results below 2^-149 are 0, denormals are right. */
NPU_LANES_INLINE Floats exponential(Floats x) {
  x = minimum(maximum(x, broadcast(-104.0f)), broadcast(89.0f)); /* NaN goes through */
  Floats n = round_even(x * broadcast(1.44269504f));
  /* ln 2 in two parts, of which the first has few bits: n times it is exact. */
  Floats r = multiply_add(n, broadcast(-0.693145752f), x);
  r = multiply_add(n, broadcast(-1.42860677e-6f), r);
  /* (e^r - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2] */
  const float fit[] = {0.0013934545f, 0.00836377684f, 0.0416664556f, 0.166665733f, 0.5f};
  Floats power = multiply_add(polynomial(r, fit), r * r, r) + broadcast(1.0f);
  return times_power_of_two(power, n);
}

/* 2^x for results that are rounded to 16 bits: within 2^-22, denormals are right.  About half the instructions of
 * exponential(), and the caller's factor of x takes log2 e in. */
NPU_LANES_INLINE Floats short_exponential2(Floats x) {
#if defined(__AVX512F__)
  Floats r = (Floats)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); /* 0 for infinities */
#else
  x = minimum(maximum(x, broadcast(-151.0f)), broadcast(129.0f)); /* NaN goes through */
  Floats n = round_even(x - broadcast(0.5f));
  Floats r = x - n;
#endif
  /* 2^r on [0, 1] */
  const float fit[] = {0.00187757646f, 0.00898934063f, 0.0558263175f, 0.240153611f, 0.693153083f, 0.99999994f};
  Floats power = polynomial(r, fit);
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)power, (__m512)x); /* takes the floor of x */
#else
  return times_power_of_two(power, n);
#endif
}

/* Natural logarithm; of 0 -infinity, of negative values NaN. */
NPU_LANES_INLINE Floats logarithm(Floats x) {
  Mask denormal = x < broadcast(0x1p-126f);
  Words word = bits_as<Words>(choose(denormal, x * broadcast(0x1p23f), x));
  /* x = 2^e m with m in [sqrt(1/2), sqrt(2)) */
  Words shifted = word - 0x3f3504f3u;
  Ints e = (Ints)shifted >> 23;
  Floats m = bits_as<Floats>((shifted & 0x007fffffu) + 0x3f3504f3u);
  Floats n = to_floats(e) - choose(denormal, broadcast(23.0f), Floats{});
  Floats r = m - broadcast(1.0f);
  /* (log(1 + r) - r + r^2 / 2) / r^3 on [sqrt(1/2) - 1, sqrt(2) - 1] */
  const float fit[] = {0.0714975372f, -0.115712009f, 0.116615109f,  -0.124110505f, 0.142499372f,
                       -0.166684806f, 0.200007081f,  -0.249999896f, 0.333333313f};
  Floats tail = polynomial(r, fit) * r * r * r;
  tail = multiply_add(n, broadcast(-2.12194440e-4f), tail);
  tail = multiply_add(r * r, broadcast(-0.5f), tail);
  Floats result = multiply_add(n, broadcast(0.693359375f), r + tail);
  result = choose(x == Floats{}, broadcast(-INFINITY), result);
  result = choose(x < Floats{}, broadcast(NAN), result);
  /* Infinity and NaN pass through. */
  return choose((Mask)bits_as<Words>(absolute(x)) >= 0x7f800000 & ~(x < Floats{}), x, result);
}

/* 1 / (1 + e^-x) */
NPU_LANES_INLINE Floats sigmoid(Floats x) { return broadcast(1.0f) / (broadcast(1.0f) + exponential(negate(x))); }

/* e^x - 1 for x in [-80, 80], accurate near 0 as well. */
NPU_LANES_INLINE Floats exponential_minus_one(Floats x) {
  Floats n = round_even(x * broadcast(1.44269504f));
  Floats r = multiply_add(n, broadcast(-0.693145752f), x);
  r = multiply_add(n, broadcast(-1.42860677e-6f), r);
  /* As in exponential(). */
  const float fit[] = {0.0013934545f, 0.00836377684f, 0.0416664556f, 0.166665733f, 0.5f};
  Floats less_one = multiply_add(polynomial(r, fit), r * r, r);
#if defined(__AVX512F__)
  Floats power = (Floats)_mm512_scalef_ps((__m512)broadcast(1.0f), (__m512)n);
#else
  Floats power = power_of_two(to_ints(choose(n == n, n, Floats{})));
#endif
  return multiply_add(less_one, power, power - broadcast(1.0f));
}

/* tanh x, within 3 units in the last place. */
NPU_LANES_INLINE Floats hyperbolic_tangent(Floats x) {
  /* Beyond 10 it is 1.  With the magnitude e^2x - 1 has no cancellation. */
  Floats grown = exponential_minus_one(broadcast(2.0f) * minimum(absolute(x), broadcast(10.0f)));
  Words sign = bits_as<Words>(x) & 0x80000000u;
  return bits_as<Floats>(bits_as<Words>(grown / (grown + broadcast(2.0f))) | sign);
}

/* erf x, within 4 units in the last place: 1 - e^(log(1 - erf x)), where the exponent is x times a polynomial. */
NPU_LANES_INLINE Floats error_function(Floats x) {
  Floats magnitude = minimum(absolute(x), broadcast(4.0f)); /* beyond it is 1 */
  /* log(1 - erf x) / x on [0, 4], weighted by what its error does to erf */
  const float fit[] = {-4.07760053e-5f, 3.81513179e-4f, -1.25323934e-3f, -2.03580188e-4f,
                       0.0193201415f,   -0.102813840f,  -0.636616588f,   -1.12837923f};
  Floats shrunk = exponential_minus_one(polynomial(magnitude, fit) * magnitude);
  Words sign = bits_as<Words>(x) & 0x80000000u;
  return bits_as<Floats>((bits_as<Words>(shrunk) & 0x7fffffffu) | sign);
}

}  // namespace
}  // namespace kernels
}  // namespace npu

#endif /* NPU_KERNELS_MATH_LANES_H_ */
