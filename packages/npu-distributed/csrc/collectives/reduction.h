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

/// A reduction in two steps: `partial` of the operands at hand, `finish` over the partial results of all places (in
/// place of the operands; an average divides by npu_reduce_job.divisor).  16-bit floats stay float32 in between, so the
/// result is rounded once.
struct TwoStepReduction {
  npu_reduce_fn partial = nullptr;  ///< nullptr when the type has no such reduction
  npu_reduce_fn finish = nullptr;
  size_t partial_bytes = 0;  ///< size of one partial result
};
TwoStepReduction FindTwoStepReduction(ElementType type, ReduceKind kind);
/// The same from the table `isa`.
TwoStepReduction FindTwoStepReduction(ElementType type, ReduceKind kind, const std::string& isa);

/// Tables this CPU can run, best first.
std::vector<std::string> AvailableIsas();

}  // namespace npu::distributed
