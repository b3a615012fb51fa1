#pragma once
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace npu::aten {

// Queues the operator and replaces its arguments on the stack by results that its task will fill.  False, with the
// stack untouched, when the results cannot be known before the operator has run.
bool run_asynchronously(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace npu::aten
