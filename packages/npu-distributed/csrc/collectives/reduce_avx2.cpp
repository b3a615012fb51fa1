// Reductions with AVX2 and F16C.
#include <immintrin.h>

#include "collectives/reduce_table.h"

#define NPU_ISA_TABLE npu_reduce_table_avx2
#define NPU_ISA_NAME "avx2"

namespace {

void HalfToFloat(const uint16_t* in, float* out, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  }
  for (; i < n; ++i) out[i] = _cvtsh_ss(in[i]);
}
void FloatToHalf(const float* in, uint16_t* out, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), 0));
  }
  for (; i < n; ++i) out[i] = _cvtss_sh(in[i], 0);
}

}  // namespace

#include "collectives/reduce_kernels.inc"
