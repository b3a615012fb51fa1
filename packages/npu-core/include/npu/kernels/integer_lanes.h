/* npu/kernels/integer_lanes.h: integers and 8-bit floats as storage types of lanes.h, for kernel files.
 *
 * load() widens to float32 (int32 is rounded to nearest even).  store() is the quantiser's last step: round half to
 * even, saturate to the type's range, NaN becomes 0.  Float8 types are rounded to nearest even and saturate to +-448
 * and +-57344; NaN stays NaN.
 *
 *   store((int8_t*)y + i, load(x + i) * scale);   // clip(rint(x * scale), -128, 127)
 *   store_int4(packed + i / 2, load(x + i) * scale);   // two values per byte, the first in the low nibble
 */
#ifndef NPU_KERNELS_INTEGER_LANES_H_
#define NPU_KERNELS_INTEGER_LANES_H_

#include "npu/kernels/lanes.h"

namespace npu {
namespace kernels {
namespace {

typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

struct Float8E4m3fn {
  uint8_t bits;
};
struct Float8E5m2 {
  uint8_t bits;
};

NPU_LANES_INLINE Floats to_floats(Ints value) { return __builtin_convertvector(value, Floats); }

/* Rounds half to even.  Values from 2^23 on are integers already. */
NPU_LANES_INLINE Floats round_even(Floats value) {
#if defined(__AVX512F__)
  return (Floats)_mm512_roundscale_ps((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (Floats)_mm256_round_ps((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  Words sign = bits_as<Words>(value) & 0x80000000u;
  Floats magnitude = bits_as<Floats>(bits_as<Words>(value) & 0x7fffffffu);
  Floats shift = broadcast(0x1p23f);
  Floats rounded = bits_as<Floats>(bits_as<Words>((magnitude + shift) - shift) | sign);
  return choose(magnitude < shift, rounded, value);
#endif
}

/* round_even(value) clipped to [low, high]; NaN becomes 0.  The bounds are integers that float32 holds. */
NPU_LANES_INLINE Floats round_saturate(Floats value, float low, float high) {
  Floats clipped = minimum(maximum(value, broadcast(low)), broadcast(high)); /* NaN goes through */
  return choose(clipped == clipped, round_even(clipped), Floats{});
}

/* Of integers within int32. */
NPU_LANES_INLINE Ints to_ints(Floats value) {
#if defined(__AVX512F__)
  return (Ints)_mm512_cvtps_epi32((__m512)value);
#elif defined(__AVX2__)
  return (Ints)_mm256_cvtps_epi32((__m256)value);
#else
  return __builtin_convertvector(value, Ints);
#endif
}

/* round_saturate() as integers of which only the low 16 bits count. */
NPU_LANES_INLINE Ints round_saturate_to_ints(Floats value, float low, float high) {
#if defined(__AVX2__)
  /* The conversion rounds half to even itself, and makes 2^31 of NaN. */
  return to_ints(minimum(maximum(value, broadcast(low)), broadcast(high)));
#else
  return to_ints(round_saturate(value, low, high));
#endif
}

/* The low 8 bits of each integer. */
NPU_LANES_INLINE Bytes narrow_bytes(Words word) {
#if defined(__AVX512F__)
  return bits_as<Bytes>(_mm512_cvtepi32_epi8((__m512i)word));
#elif defined(__AVX2__)
  __m256i low = _mm256_and_si256((__m256i)word, _mm256_set1_epi32(0xff));
  __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  __m128i packed = _mm_packus_epi16(half, half);
  Bytes bytes;
  _mm_storel_epi64((__m128i*)&bytes, packed);
  return bytes;
#elif defined(__SSE2__)
  __m128i low = _mm_and_si128((__m128i)word, _mm_set1_epi32(0xff));
  __m128i half = _mm_packs_epi32(low, low);
  return bits_as<Bytes>(_mm_cvtsi128_si32(_mm_packus_epi16(half, half)));
#else
  return __builtin_convertvector(word, Bytes);
#endif
}

NPU_LANES_INLINE Words widen_bytes(Bytes bytes) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu8_epi32(bits_as<__m128i>(bytes));
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)&bytes));
#elif defined(__SSE2__)
  __m128i zero = _mm_setzero_si128();
  return (Words)_mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(bits_as<int>(bytes)), zero), zero);
#else
  return __builtin_convertvector(bytes, Words);
#endif
}

NPU_LANES_INLINE Floats load(const uint8_t* from) { return to_floats((Ints)widen_bytes(load_bits<Bytes>(from))); }
NPU_LANES_INLINE Floats load(const int8_t* from) {
  return to_floats((Ints)(widen_bytes(load_bits<Bytes>(from)) << 24) >> 24);
}
NPU_LANES_INLINE Floats load(const int32_t* from) { return to_floats(load_bits<Ints>(from)); }

NPU_LANES_INLINE void store(int8_t* to, Floats value) {
  Bytes bytes = narrow_bytes((Words)round_saturate_to_ints(value, -128, 127));
  memcpy(to, &bytes, sizeof(bytes));
}
NPU_LANES_INLINE void store(uint8_t* to, Floats value) {
  Bytes bytes = narrow_bytes((Words)round_saturate_to_ints(value, 0, 255));
  memcpy(to, &bytes, sizeof(bytes));
}
NPU_LANES_INLINE void store(int32_t* to, Floats value) {
  /* 2147483520 is the float32 before 2^31. */
  Ints whole = to_ints(round_saturate(value, -0x1p31f, 2147483520.0f));
  Ints result = (Ints)choose(value >= broadcast(0x1p31f), (Words)(Ints{} + INT32_MAX), (Words)whole);
  memcpy(to, &result, sizeof(result));
}

/* ---- int4, two values per byte ------------------------------------------------------------------------------- */

/* Quantises the first `count` lanes (an even number) to [-8, 7] into count / 2 bytes, the first of each pair in the low
 * nibble.  Eight values make one little-endian int32 of the packed format. */
NPU_LANES_INLINE void store_int4(uint8_t* to, Floats value, int64_t count = kLanes) {
  uint8_t nibble[kLanes];
  Bytes bytes = narrow_bytes((Words)round_saturate_to_ints(value, -8, 7) & 15u);
  memcpy(nibble, &bytes, sizeof(bytes));
  for (int64_t i = 0; i < count / 2; ++i) to[i] = (uint8_t)(nibble[2 * i] | nibble[2 * i + 1] << 4);
}

/* The int4 values of count / 2 bytes, 0 in the other lanes. */
NPU_LANES_INLINE Floats load_int4(const uint8_t* from, int64_t count = kLanes) {
  int32_t lane[kLanes] = {0};
  for (int64_t i = 0; i < count / 2; ++i) {
    lane[2 * i] = (int8_t)(uint8_t)(from[i] << 4) >> 4;
    lane[2 * i + 1] = (int8_t)from[i] >> 4;
  }
  return to_floats(load_bits<Ints>(lane));
}

/* ---- 8-bit floats -------------------------------------------------------------------------------------------- */

/* `mantissa` bits are kept, the exponent is rebiased by `bias`; above `largest` the value saturates to it. */
template <int kMantissa, int kBias>
NPU_LANES_INLINE Words round_to_float8(Floats value, float largest, uint32_t nan) {
  Words word = bits_as<Words>(value);
  Words sign = (word >> 24) & 0x80u;
  Floats magnitude = bits_as<Floats>(word & 0x7fffffffu);
  Words bits = bits_as<Words>(minimum(magnitude, broadcast(largest)));
  const uint32_t half = (1u << (22 - kMantissa)) - 1;
  Words normal =
      (bits - ((uint32_t)(127 - kBias) << 23) + half + ((bits >> (23 - kMantissa)) & 1u)) >> (23 - kMantissa);
  /* Denormal results: adding this power of two puts their unit at the last mantissa bit. */
  const uint32_t unit = (uint32_t)(127 + 23 + 1 - kBias - kMantissa) << 23;
  Words denormal = bits_as<Words>(bits_as<Floats>(bits) + bits_as<Floats>(unit + Words{})) - unit;
  Words result = choose((Mask)bits < (Mask{} + (int32_t)((128 - kBias) << 23)), denormal, normal);
  return choose(value != value, nan + Words{}, result) | sign;
}

NPU_LANES_INLINE void store(Float8E4m3fn* to, Floats value) {
  Bytes bytes = narrow_bytes(round_to_float8<3, 7>(value, 448.0f, 0x7f));
  memcpy(to, &bytes, sizeof(bytes));
}
NPU_LANES_INLINE void store(Float8E5m2* to, Floats value) {
  Bytes bytes = narrow_bytes(round_to_float8<2, 15>(value, 57344.0f, 0x7f));
  memcpy(to, &bytes, sizeof(bytes));
}

NPU_LANES_INLINE Floats load(const Float8E4m3fn* from) {
  Words word = widen_bytes(load_bits<Bytes>(from));
  /* Read as float32 the magnitude is 2^-120 times the value, denormals included. */
  Words finite = bits_as<Words>(bits_as<Floats>((word & 0x7fu) << 20) * broadcast(0x1p120f));
  Words result = choose((Mask)(word & 0x7fu) == 0x7f, 0x7fc00000u + Words{}, finite);
  return bits_as<Floats>(result | ((word & 0x80u) << 24));
}
/* e5m2 is the upper half of a float16. */
NPU_LANES_INLINE Floats load(const Float8E5m2* from) {
  return widen_float16(narrow_words(widen_bytes(load_bits<Bytes>(from)) << 8));
}

}  // namespace
}  // namespace kernels
}  // namespace npu

#endif /* NPU_KERNELS_INTEGER_LANES_H_ */
