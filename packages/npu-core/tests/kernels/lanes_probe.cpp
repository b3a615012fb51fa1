// The building blocks of kernel files as plain functions, for test_kernel_headers.py.  Compiled once per instruction
// set.
#include "npu/kernels/math_lanes.h"
#include "npu/kernels/rows.h"

namespace npu {
namespace kernels {
namespace {

template <class From, class To, class Map>
void map(const From* from, To* to, int64_t count, Map function) {
  each_lanes(count, [=](int64_t i, int64_t some)
                        NPU_LANES_BODY { store_some(to + i, function(load_some(from + i, some)), some); });
}

Floats same(Floats value) { return value; }

}  // namespace
}  // namespace kernels
}  // namespace npu

using namespace npu::kernels;

extern "C" {

void probe_exponential(const float* x, float* y, int64_t n) { map(x, y, n, exponential); }
void probe_logarithm(const float* x, float* y, int64_t n) { map(x, y, n, logarithm); }
void probe_sigmoid(const float* x, float* y, int64_t n) { map(x, y, n, sigmoid); }
void probe_square_root(const float* x, float* y, int64_t n) { map(x, y, n, square_root); }
void probe_round_even(const float* x, float* y, int64_t n) { map(x, y, n, round_even); }

void probe_to_int8(const float* x, int8_t* y, int64_t n) { map(x, y, n, same); }
void probe_to_uint8(const float* x, uint8_t* y, int64_t n) { map(x, y, n, same); }
void probe_to_int32(const float* x, int32_t* y, int64_t n) { map(x, y, n, same); }
void probe_to_float8_e4m3fn(const float* x, Float8E4m3fn* y, int64_t n) { map(x, y, n, same); }
void probe_to_float8_e5m2(const float* x, Float8E5m2* y, int64_t n) { map(x, y, n, same); }
void probe_to_bfloat16(const float* x, Bfloat16* y, int64_t n) { map(x, y, n, same); }
void probe_to_float16(const float* x, Float16* y, int64_t n) { map(x, y, n, same); }

void probe_from_int8(const int8_t* x, float* y, int64_t n) { map(x, y, n, same); }
void probe_from_uint8(const uint8_t* x, float* y, int64_t n) { map(x, y, n, same); }
void probe_from_int32(const int32_t* x, float* y, int64_t n) { map(x, y, n, same); }
void probe_from_float8_e4m3fn(const Float8E4m3fn* x, float* y, int64_t n) { map(x, y, n, same); }
void probe_from_float8_e5m2(const Float8E5m2* x, float* y, int64_t n) { map(x, y, n, same); }
void probe_from_bfloat16(const Bfloat16* x, float* y, int64_t n) { map(x, y, n, same); }
void probe_from_float16(const Float16* x, float* y, int64_t n) { map(x, y, n, same); }

// n is even; y has n / 2 bytes
void probe_to_int4(const float* x, uint8_t* y, int64_t n) {
  each_lanes(n, [=](int64_t i, int64_t some) NPU_LANES_BODY { store_int4(y + i / 2, load_some(x + i, some), some); });
}
void probe_from_int4(const uint8_t* x, float* y, int64_t n) {
  each_lanes(n, [=](int64_t i, int64_t some) NPU_LANES_BODY { store_some(y + i, load_int4(x + i / 2, some), some); });
}

double probe_sum(const float* x, int64_t n) {
  return sum_row(n, [=](int64_t i, int64_t some) NPU_LANES_BODY { return load_some(x + i, some); });
}
float probe_max(const float* x, float least, int64_t n) {
  return max_row(n, least, [=](int64_t i, int64_t some) NPU_LANES_BODY {
    return some == kLanes ? load(x + i) : first_lanes(load_first(x + i, some), some, -INFINITY);
  });
}
}
