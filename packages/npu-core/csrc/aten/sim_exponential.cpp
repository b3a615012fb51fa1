// npu_sim_exponential_, the exponential distribution under the name of the Ascend extension.  It lives here and not in
// an operator wheel because the stable ABI has no Generator arguments.
#include <ATen/ops/exponential.h>
#include <ATen/ops/zero.h>
#include <torch/library.h>

#include <cmath>

namespace npu::aten {
namespace {

at::Tensor& npu_sim_exponential_(at::Tensor& self, double lambd, std::optional<at::Generator> generator) {
  TORCH_CHECK(lambd > 0.0, "npu_sim_exponential_ expects lambd > 0.0, but found lambd=", lambd);
  TORCH_CHECK(at::isFloatingType(self.scalar_type()),
              "npu_sim_exponential_: argument self: expected dtype float16, bfloat16 or float32, got ",
              self.scalar_type());
  // The limit, for which no random numbers are drawn.
  return std::isinf(lambd) ? self.zero_() : self.exponential_(lambd, std::move(generator));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("npu_sim_exponential_(Tensor(a!) self, float lambd=1, *, Generator? generator=None) -> Tensor(a!)",
        {at::Tag::nondeterministic_seeded});
}

// Composite, so that functionalisation sees operators it knows.
TORCH_LIBRARY_IMPL(npu, CompositeImplicitAutograd, m) {
  m.impl("npu_sim_exponential_", TORCH_FN(npu_sim_exponential_));
}

}  // namespace npu::aten
