// Picks the reduction kernel for a type, an operation and this CPU.
#pragma once

#include <string>
#include <vector>

#include "collectives/element_type.h"
#include "collectives/reduce_table.h"

namespace npu::distributed {

/// The kernel, or nullptr when the type has no such reduction.  Uses the best table of this CPU that
/// NPU_CPU_ISA allows (npu/kernels/isa.h).
npu_reduce_fn FindReduction(ElementType type, ReduceKind kind);

/// The same from the table `isa`; nullptr as well when this CPU or build lacks the table.
npu_reduce_fn FindReduction(ElementType type, ReduceKind kind, const std::string& isa);

/// Tables this CPU can run, best first.
std::vector<std::string> AvailableIsas();

}  // namespace npu::distributed
