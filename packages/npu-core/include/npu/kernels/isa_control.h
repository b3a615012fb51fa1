/* npu/kernels/isa_control.h: the one function an op library exports.
 *
 * Include it in one file of the library.  The package's library.py reaches it with ctypes, for reports and so that
 * tests can run every kernel table.
 */
#ifndef NPU_KERNELS_ISA_CONTROL_H_
#define NPU_KERNELS_ISA_CONTROL_H_

#include "npu/kernels/isa.h"

/// Caps the instruction set of this library's kernels at `limit` ("avx2") when it is not NULL, never above what the CPU
/// has.  Returns the one in force, or NULL when `limit` or NPU_CPU_ISA is no known name.
extern "C" __attribute__((visibility("default"))) const char* npu_kernels_isa(const char* limit) try {
  using namespace npu::kernels;
  if (limit != nullptr) return isa_name(limit_isa(isa_from_name(limit)));
  return isa_name(static_cast<Isa>(isa_cap().load(std::memory_order_relaxed)));
} catch (const std::exception&) {
  return nullptr;
}

#endif  // NPU_KERNELS_ISA_CONTROL_H_
