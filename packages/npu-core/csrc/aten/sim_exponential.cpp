// npu_sim_exponential_, the exponential distribution under the name of the Ascend extension.  It lives here and not in
// an operator wheel because the stable ABI has no Generator arguments.
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/exponential.h>
#include <ATen/ops/zero.h>
#include <torch/library.h>

#include <cmath>

namespace npu::aten {
namespace {

// Generators draw exponential numbers of mean 1 that are not below this.
constexpr double kLeastDrawn = 0x1p-64;

double smallest_positive(at::ScalarType dtype) {
  switch (dtype) {
    case at::kHalf:
      return 0x1p-24;
    case at::kBFloat16:
      return 0x1p-133;
    case at::kFloat:
      return 0x1p-149;
    default:
      return 0x1p-1074;
  }
}

at::Tensor& npu_sim_exponential_(at::Tensor& self, double lambd, std::optional<at::Generator> generator) {
  TORCH_CHECK(lambd > 0.0, "npu_sim_exponential_ expects lambd > 0.0, but found lambd=", lambd);
  TORCH_CHECK(at::isFloatingType(self.scalar_type()),
              "npu_sim_exponential_: argument self: expected a floating-point dtype, got ", self.scalar_type());
  // The limit, for which no random numbers are drawn.
  if (std::isinf(lambd)) return self.zero_();
  self.exponential_(lambd, std::move(generator));
  // Every value is positive, also where the dtype would round it to 0.
  const double least = smallest_positive(self.scalar_type());
  if (least * lambd > kLeastDrawn) self.clamp_min_(least);
  return self;
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
