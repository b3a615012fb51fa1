#include "philox.h"

#include "npu/kernels/isa.h"

namespace npu::aten::philox {

extern const Kernels kernels_base;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
#endif

const Kernels& kernels() {
#if defined(__x86_64__)
  static constexpr npu::kernels::KernelTables<Kernels> kTables = {&kernels_base, &kernels_avx2, &kernels_avx512};
#else
  static constexpr npu::kernels::KernelTables<Kernels> kTables = {&kernels_base};
#endif
  return kTables.active();
}

}  // namespace npu::aten::philox
