/* Activation functions of vectors and their derivatives, for kernel files (see npu/kernels/lanes.h). */
#ifndef NPU_OPS_LLM_KERNELS_ACTIVATION_LANES_H_
#define NPU_OPS_LLM_KERNELS_ACTIVATION_LANES_H_

#include "npu/kernels/math_lanes.h"

namespace npu {
namespace kernels {
namespace {

/* x sigmoid(1.702 x) */
struct FastGelu {
  static NPU_LANES_INLINE Floats value(Floats x) { return x / (broadcast(1.0f) + exponential(broadcast(-1.702f) * x)); }
  static NPU_LANES_INLINE Floats gradient(Floats x) {
    Floats s = sigmoid(broadcast(1.702f) * x);
    return s * (broadcast(1.0f) + broadcast(1.702f) * x * (broadcast(1.0f) - s));
  }
};

/* x Phi(x), Phi the distribution function of the normal distribution */
struct Gelu {
  static NPU_LANES_INLINE Floats phi(Floats x) {
    return broadcast(0.5f) * (broadcast(1.0f) + error_function(x * broadcast(0.707106781f)));
  }
  static NPU_LANES_INLINE Floats value(Floats x) { return x * phi(x); }
  static NPU_LANES_INLINE Floats gradient(Floats x) {
    Floats density = broadcast(0.398942280f) * exponential(broadcast(-0.5f) * x * x);
    return phi(x) + x * density;
  }
};

/* x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 */
struct GeluTanh {
  static NPU_LANES_INLINE Floats tanh(Floats x) {
    Floats slope = multiply_add(x * x, broadcast(0.044715f), broadcast(1.0f));
    return hyperbolic_tangent(broadcast(0.797884561f) * x * slope);
  }
  static NPU_LANES_INLINE Floats value(Floats x) { return broadcast(0.5f) * x * (broadcast(1.0f) + tanh(x)); }
  static NPU_LANES_INLINE Floats gradient(Floats x) {
    Floats t = tanh(x);
    Floats slope = multiply_add(x * x, broadcast(3 * 0.044715f), broadcast(1.0f)) * broadcast(0.797884561f);
    Floats bend = x * (broadcast(1.0f) - t * t) * slope;
    return broadcast(0.5f) * (broadcast(1.0f) + t + bend);
  }
};

/* x sigmoid(x) */
struct Silu {
  static NPU_LANES_INLINE Floats value(Floats x) { return x / (broadcast(1.0f) + exponential(negate(x))); }
};

}  // namespace
}  // namespace kernels
}  // namespace npu

#endif /* NPU_OPS_LLM_KERNELS_ACTIVATION_LANES_H_ */
