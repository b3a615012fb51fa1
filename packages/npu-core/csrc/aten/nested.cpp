// Nested tensors of the strided layout do not exist on npu (those of the jagged layout are made of ordinary tensors and
// work): say so, and keep torch's modules from making them.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "runtime/error.h"

namespace npu::aten {
namespace {

void refuse(const c10::OperatorHandle& op, torch::jit::Stack* /*stack*/) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.schema().operator_name(),
                              ": nested tensors of layout torch.strided are not supported on npu; make them with "
                              "layout=torch.jagged, or pad them (torch.nested.to_padded_tensor) on the CPU.",
                              error_suffix(Submodule::OPS, ErrorCode::NOT_SUPPORT));
}

// torch.nn.TransformerEncoder asks this before it turns a padded batch into a nested tensor.
bool can_be_nested(const at::Tensor& /*t*/, const at::Tensor& /*mask*/) { return false; }

}  // namespace

TORCH_LIBRARY_IMPL(_, NestedTensorPrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&refuse>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) { m.impl("_nested_tensor_from_mask_left_aligned", TORCH_FN(can_be_nested)); }

}  // namespace npu::aten
