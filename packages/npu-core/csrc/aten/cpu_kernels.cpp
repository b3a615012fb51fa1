#include "cpu_kernels.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include "fallback.h"

namespace npu::aten {

void use_cpu_kernels(torch::Library& m, c10::DispatchKey cpu_key, const std::set<std::string>& own) {
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findSchema(name);
    if (!op || name.name.rfind("aten::", 0) != 0 || !op->hasKernelForDispatchKey(cpu_key)) continue;
    const std::string spelled = c10::toString(name).substr(std::string("aten::").size());
    if (own.count(spelled) == 0) m.impl(spelled.c_str(), torch::CppFunction::makeFromBoxedFunction<&boxed_fallback>());
  }
}

}  // namespace npu::aten
