#pragma once
#include <torch/library.h>

#include <set>
#include <string>

namespace npu::aten {

// For the sparse and quantised counterparts of the npu key.  torch composes some operators of others unless the backend
// has a kernel of its own, and some compositions do not understand such operands: every operator with a CPU kernel for
// `cpu_key` goes to the fallback.  `own` are those that the caller registers itself.
void use_cpu_kernels(torch::Library& m, c10::DispatchKey cpu_key, const std::set<std::string>& own);

}  // namespace npu::aten
