// Reductions with AVX-512 (F, BW, DQ, VL).
#include <immintrin.h>

#include "collectives/reduce_table.h"

#define NPU_ISA_TABLE npu_reduce_table_avx512
#define NPU_ISA_NAME "avx512"

namespace {

void HalfToFloat(const uint16_t* in, float* out, size_t n) {
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i))));
  }
  for (; i < n; ++i) out[i] = _cvtsh_ss(in[i]);
}
void FloatToHalf(const float* in, uint16_t* out, size_t n) {
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm512_cvtps_ph(_mm512_loadu_ps(in + i), 0));
  }
  for (; i < n; ++i) out[i] = _cvtss_sh(in[i], 0);
}

}  // namespace

#include "collectives/reduce_kernels.inc"
