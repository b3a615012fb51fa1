// The kernels of csrc/kernels/moe_rows.inc for this CPU.
#pragma once

#include "kernels/moe_rows.h"
#include "npu/kernels/isa.h"

namespace npu::distributed {

inline const MoeRowsKernels& MoeRows() {
#if defined(__x86_64__)
  static const kernels::KernelTables<MoeRowsKernels> tables = {
      {&moe_rows_kernels_base, &moe_rows_kernels_avx2, &moe_rows_kernels_avx512}};
#else
  static const kernels::KernelTables<MoeRowsKernels> tables = {{&moe_rows_kernels_base}};
#endif
  return tables.active();
}

}  // namespace npu::distributed
