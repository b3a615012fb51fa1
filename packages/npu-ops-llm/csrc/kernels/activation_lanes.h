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

/* x (1 + tanh(z)) / 2 with z = sqrt(2 / pi) (x + 0.044715 x^3) */
struct GeluTanh {
  static NPU_LANES_INLINE Floats bent(Floats x) {
    return broadcast(0.797884561f) * x * multiply_add(x * x, broadcast(0.044715f), broadcast(1.0f));
  }
  static NPU_LANES_INLINE Floats value(Floats x) {
    return broadcast(0.5f) * x * (broadcast(1.0f) + hyperbolic_tangent(bent(x)));
  }
  static NPU_LANES_INLINE Floats gradient(Floats x) {
    /* With s = (1 + tanh(z)) / 2 = sigmoid(2 z) it is s + 2 x z' s (1 - s).  From e^-|2z|, because 1 - tanh(z)^2
     * cancels and x z' is large there. */
    Floats z = bent(x);
    Floats e = exponential(broadcast(-2.0f) * absolute(z));
    Floats q = broadcast(1.0f) / (broadcast(1.0f) + e);
    Floats slope = broadcast(2 * 0.797884561f) * multiply_add(x * x, broadcast(3 * 0.044715f), broadcast(1.0f));
    return choose(z < Floats{}, e * q, q) + x * slope * (e * q * q);
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
