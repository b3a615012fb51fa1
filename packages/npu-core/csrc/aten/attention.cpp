// Which algorithm torch.nn.functional.scaled_dot_product_attention uses on npu: the CPU's flash kernel where it can
// take the operands (it runs on the engine, forward and backward), the composition of matmuls and softmax otherwise.
#include <ATen/Context.h>
#include <ATen/SDPBackend.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/transformers/attention.h>

namespace npu::aten {
namespace {

// Sizes are compared as symbols: torch.export asks about shapes that stay dynamic.
bool is_dense_4d(const at::Tensor& t) {
  return t.dim() == 4 && t.layout() == at::kStrided && !t.is_nested() && t.sym_stride(-1) == 1 && t.sym_size(2) > 0;
}

// A mask must be a floating or boolean tensor that broadcasts over (batch, heads, rows, columns) and needs no gradient:
// the kernel gives none.
bool takes_mask(const std::optional<at::Tensor>& mask, const at::Tensor& query, const at::Tensor& key) {
  if (!mask.has_value() || !mask->defined()) return true;
  if (mask->requires_grad() || mask->is_nested()) return false;
  if (mask->scalar_type() != at::kBool && mask->scalar_type() != query.scalar_type()) return false;
  const auto fits = [&](std::int64_t dim, const c10::SymInt& size) {
    return mask->sym_size(dim) == 1 || mask->sym_size(dim) == size;
  };
  if (mask->dim() == 2) return fits(0, query.sym_size(2)) && fits(1, key.sym_size(2));
  return mask->dim() == 4 && fits(0, query.sym_size(0)) && fits(1, query.sym_size(1)) && fits(2, query.sym_size(2)) &&
         fits(3, key.sym_size(2));
}

bool takes_heads(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, bool enable_gqa) {
  if (key.sym_size(1) != value.sym_size(1)) return false;
  return query.sym_size(1) == key.sym_size(1) ||
         (enable_gqa && key.sym_size(1) > 0 && query.sym_size(1) % key.sym_size(1) == 0);
}

bool flash_takes(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 const std::optional<at::Tensor>& mask, double dropout_p, bool enable_gqa) {
  if (!at::globalContext().userEnabledFlashSDP() || dropout_p != 0.0) return false;
  if (!is_dense_4d(query) || !is_dense_4d(key) || !is_dense_4d(value)) return false;
  const auto dtype = query.scalar_type();
  if (!at::isFloatingType(dtype) || key.scalar_type() != dtype || value.scalar_type() != dtype) return false;
  return query.sym_size(0) == key.sym_size(0) && key.sym_size(0) == value.sym_size(0) && query.sym_size(0) > 0 &&
         query.sym_size(3) == key.sym_size(3) && key.sym_size(3) == value.sym_size(3) && query.sym_size(3) > 0 &&
         key.sym_size(2) == value.sym_size(2) && takes_heads(query, key, value, enable_gqa) &&
         takes_mask(mask, query, key);
}

std::int64_t choose(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                    const std::optional<at::Tensor>& mask, double dropout_p, bool /*is_causal*/,
                    std::optional<double> /*scale*/, bool enable_gqa) {
  const bool flash = flash_takes(query, key, value, mask, dropout_p, enable_gqa);
  return static_cast<std::int64_t>(flash ? at::SDPBackend::flash_attention : at::SDPBackend::math);
}

}  // namespace
}  // namespace npu::aten

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &npu::aten::choose)
}  // namespace at::native
