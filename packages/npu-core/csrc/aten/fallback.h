#pragma once
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace npu::aten {

// Runs torch's CPU kernel of the operator on the engine: asynchronously where the results' shapes are known, else while
// the caller waits.
void boxed_fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace npu::aten
