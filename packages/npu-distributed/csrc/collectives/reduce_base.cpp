// Reductions for every x86-64 and other machines: what the compiler's baseline offers.
#include "collectives/reduce_table.h"

#define NPU_ISA_TABLE npu_reduce_table_base
#define NPU_ISA_NAME "base"

namespace {

inline float HalfBitsToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  // Exponent and mantissa moved into place are too small by 2^112; subnormals come out right because the product is
  // exact, infinities and NaN are patched.
  uint32_t shifted = magnitude << 13;
  float value;
  __builtin_memcpy(&value, &shifted, 4);
  value *= 0x1p112f;
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  if (magnitude >= 0x7c00u) bits = 0x7f800000u | shifted;
  bits |= sign;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline uint16_t FloatToHalfBits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((bits >> 13) & 0x3ffu));
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds beyond the largest finite half
  if (bits < 0x38800000u) {                                               // subnormal: let the adder round
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    uint32_t rounded;
    __builtin_memcpy(&rounded, &magnitude, 4);
    return static_cast<uint16_t>(sign | (rounded - 0x3f000000u));
  }
  const uint32_t odd = (bits >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + odd) >> 13));
}

void HalfToFloat(const uint16_t* in, float* out, size_t n) {
  for (size_t i = 0; i < n; ++i) out[i] = HalfBitsToFloat(in[i]);
}
void FloatToHalf(const float* in, uint16_t* out, size_t n) {
  for (size_t i = 0; i < n; ++i) out[i] = FloatToHalfBits(in[i]);
}

}  // namespace

#include "collectives/reduce_kernels.inc"
