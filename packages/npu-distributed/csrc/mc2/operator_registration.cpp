#include "mc2/operator_registration.h"

#include <c10/util/Exception.h>

namespace npu::distributed::registration {

void RefuseCpu(const c10::OperatorHandle& op, torch::jit::Stack* /*stack*/) {
  TORCH_CHECK(false, op.operator_name().name, ": expected npu tensors, got CPU tensors; move them with .to(\"npu\")");
}

}  // namespace npu::distributed::registration
