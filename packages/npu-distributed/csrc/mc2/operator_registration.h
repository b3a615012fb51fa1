// How a fused operator enters torch: schema, kernel, and what happens to tensors it has no kernel for.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <utility>

namespace npu::distributed {

namespace registration {

/// `Kernel` below autograd: the operators have no gradient, and the aten calls inside must not record one.
template <class Signature, Signature* Kernel>
struct Detached;
template <class Result, class... Arguments, Result (*Kernel)(Arguments...)>
struct Detached<Result(Arguments...), Kernel> {
  static Result Call(Arguments... arguments) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return Kernel(std::forward<Arguments>(arguments)...);
  }
};

/// Kernel for CPU tensors: raises an error that names the operator.
void RefuseCpu(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace registration

/// Defines an operator of `fragment` from its schema "name(...) -> ...".  `Kernel` serves npu tensors; CPU tensors are
/// an error; results are detached from autograd.
template <auto Kernel>
void DefineFusedOperator(torch::Library& fragment, const std::string& schema) {
  using Signature = std::remove_pointer_t<decltype(Kernel)>;
  const std::string name = schema.substr(0, schema.find('('));
  fragment.def(schema.c_str());
  fragment.impl(name.c_str(), torch::dispatch(c10::DispatchKey::PrivateUse1,
                                              TORCH_FN((registration::Detached<Signature, Kernel>::Call))));
  fragment.impl(name.c_str(), torch::dispatch(c10::DispatchKey::CPU,
                                              torch::CppFunction::makeFromBoxedFunction<&registration::RefuseCpu>()));
  fragment.impl(name.c_str(), torch::dispatch(c10::DispatchKey::Autograd, torch::CppFunction::makeFallthrough()));
}

}  // namespace npu::distributed
