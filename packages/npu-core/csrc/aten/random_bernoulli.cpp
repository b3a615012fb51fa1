// bernoulli in its forms.
#include <ATen/ExpandUtils.h>
#include <ATen/native/Resize.h>
#include <torch/library.h>

#include <array>
#include <atomic>

#include "random_bernoulli.h"

namespace npu::aten {

void fill_bernoulli(const at::Tensor& self, double p, PhiloxState state) {
  const std::uint64_t successes = bernoulli_words(p);
  if (successes == 0) {
    mut(self).zero_();
    return;
  }
  const auto last = static_cast<std::uint32_t>(successes - 1);
  on_contiguous(self, [&](const at::Tensor& out) {
    if (out.itemsize() == 1) {
      auto* data = static_cast<std::uint8_t*>(out.mutable_data_ptr());
      for_chunks(out.numel(), state,
                 [&](const philox::Draw& draw) { philox::kernels().bernoulli(data + draw.begin, draw, last); });
      return;
    }
    if (out.scalar_type() == at::kFloat) {
      auto* data = out.mutable_data_ptr<float>();
      for_chunks(out.numel(), state,
                 [&](const philox::Draw& draw) { philox::kernels().bernoulli_float(data + draw.begin, draw, last); });
      return;
    }
    AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "bernoulli_npu", [&] {
      auto* data = out.mutable_data_ptr<scalar_t>();
      for_chunks(out.numel(), state, [&](const philox::Draw& draw) {
        std::array<std::uint8_t, philox::kChunk> success;
        philox::kernels().bernoulli(success.data(), draw, last);
        scalar_t* to = data + draw.begin;
        const auto one = static_cast<scalar_t>(1), zero = static_cast<scalar_t>(0);
        for (std::int64_t i = 0; i < draw.count; ++i) to[i] = success[static_cast<size_t>(i)] != 0 ? one : zero;
      });
    });
  });
}

namespace {

void run_bernoulli(const at::Tensor& self, double p, PhiloxState state) { fill_bernoulli(self, p, state); }

void run_bernoulli_tensor(const at::Tensor& self, const at::Tensor& probabilities, PhiloxState state) {
  const auto p = probabilities.contiguous();
  std::atomic<bool> valid{true};
  const auto fill = [&](const at::Tensor& out) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, p.scalar_type(), "bernoulli_npu", [&] {
      using p_t = scalar_t;
      AT_DISPATCH_ALL_TYPES_AND3(at::kBool, at::kHalf, at::kBFloat16, out.scalar_type(), "bernoulli_npu", [&] {
        const auto* from = p.const_data_ptr<p_t>();
        auto* data = out.mutable_data_ptr<scalar_t>();
        for_chunks(out.numel(), state, [&](const philox::Draw& draw) {
          std::array<std::uint32_t, philox::kChunk> word;
          philox::kernels().bits(word.data(), draw);
          bool good = true;
          for (std::int64_t i = 0; i < draw.count; ++i) {
            const auto chance = static_cast<double>(from[draw.begin + i]);
            good &= chance >= 0.0 && chance <= 1.0;
            const bool success = static_cast<double>(word[static_cast<size_t>(i)]) < chance * 0x1p32;
            data[draw.begin + i] = static_cast<scalar_t>(success ? 1 : 0);
          }
          if (!good) valid.store(false, std::memory_order_relaxed);
        });
      });
    });
  };
  // self may be the tensor of probabilities itself; contiguous() keeps that one's memory, and each is read before its
  // result is written.
  on_contiguous(self, fill);
  TORCH_CHECK(valid.load(),
              "expected all probabilities to be in [0, 1] (p_in >= 0 && p_in <= 1), but at "
              "least one is not");
}

void check_result(const at::Tensor& self) {
  TORCH_CHECK_NOT_IMPLEMENTED(float_type(self.scalar_type()) >= 0 || self.scalar_type() == at::kDouble ||
                                  (at::isIntegralType(self.scalar_type(), /*includeBool=*/true) &&
                                   !at::isBarebonesUnsignedType(self.scalar_type())),
                              "bernoulli: expected the result to be bool, integer or floating point, but got ",
                              self.scalar_type());
  at::assert_no_internal_overlap(self);
}

at::Tensor& bernoulli_float(at::Tensor& self, double p, OptGenerator generator) {
  TORCH_CHECK(0 <= p && p <= 1, "bernoulli_ expects p to be in [0, 1], but got p=", p);
  check_result(self);
  if (self.numel() == 0) return self;
  launch_op<&run_bernoulli>("aten::bernoulli_", self, p, reserve_words(self, generator, self.numel()));
  return self;
}

at::Tensor& bernoulli_tensor(at::Tensor& self, const at::Tensor& p, OptGenerator generator) {
  TORCH_CHECK_NOT_IMPLEMENTED(float_type(p.scalar_type()) >= 0 || p.scalar_type() == at::kDouble,
                              "bernoulli: expected the probabilities to be float32, float64, float16 or bfloat16, but "
                              "got ",
                              p.scalar_type());
  check_result(self);
  const auto expanded = (p.is_cpu() ? p.to(self.device()) : p).expand(self.sizes());
  if (!p.is_same(self) && !p.is_cpu()) at::assert_no_partial_overlap(self, p);
  if (self.numel() == 0) return self;
  launch_op<&run_bernoulli_tensor>("aten::bernoulli_", self, expanded, reserve_words(self, generator, self.numel()));
  return self;
}

at::Tensor bernoulli(const at::Tensor& self, OptGenerator generator) {
  auto out = at::empty_like(self, at::MemoryFormat::Contiguous);
  return bernoulli_tensor(out, self, std::move(generator));
}

at::Tensor& bernoulli_out(const at::Tensor& self, OptGenerator generator, at::Tensor& out) {
  at::native::resize_output(out, self.sizes());
  return bernoulli_tensor(out, self, std::move(generator));
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("bernoulli_.float", TORCH_FN(bernoulli_float));
  m.impl("bernoulli_.Tensor", TORCH_FN(bernoulli_tensor));
  m.impl("bernoulli", TORCH_FN(bernoulli));
  m.impl("bernoulli.out", TORCH_FN(bernoulli_out));
}

}  // namespace npu::aten
