// Operators that torch composes of others on devices without a kernel of their own, run as one task instead: torch's
// CPU kernel, or its composition over CPU aliases.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <array>
#include <set>
#include <string>
#include <vector>

#include "boxed_async.h"
#include "fallback.h"

namespace npu::aten {
namespace {

void foreach (const c10::OperatorHandle& op, torch::jit::Stack * stack) {
  if (run_asynchronously(op, stack)) return;
  // Lists over several devices, wrong shapes, shared tensors: tensor by tensor, with the errors torch gives.
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
}

// _foreach_copy_ copies between devices; tensor by tensor it finds the right copy for each pair.
const std::set<std::string> kTensorByTensor = {"aten::_foreach_copy_", "aten::_foreach_copy",
                                               "aten::_foreach_copy.out"};

// These have a CPU kernel besides the composition: it rounds once and is faster.
constexpr std::array kFusedOnCpu = {"addr",          "addr.out",        "mish_backward", "native_channel_shuffle",
                                    "pixel_shuffle", "pixel_unshuffle", "linalg__powsum"};

bool is_foreach(const c10::OperatorName& name) {
  return name.name.rfind("aten::_foreach_", 0) == 0 && kTensorByTensor.count(name.name) == 0;
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  for (const char* name : kFusedOnCpu) m.impl(name, torch::CppFunction::makeFromBoxedFunction<&boxed_fallback>());
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (!is_foreach(name)) continue;
    const auto op = dispatcher.findSchema(name);
    if (!op || op->hasKernelForDispatchKey(c10::DispatchKey::CPU)) continue;
    const std::string spelled = c10::toString(name).substr(std::string("aten::").size());
    m.impl(spelled.c_str(), torch::CppFunction::makeFromBoxedFunction<&foreach>());
  }
}

}  // namespace npu::aten
