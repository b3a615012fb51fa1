#include "runtime/generator.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/Storage.h>

#include <thread>
#include <vector>

#include "harness.h"
#include "runtime/device.h"

namespace {

// A byte tensor without torch's operators: only the generator is under test.
c10::intrusive_ptr<c10::TensorImpl> bytes(const std::vector<std::uint8_t>& values) {
  auto tensor = at::detail::empty_cpu({static_cast<std::int64_t>(values.size())}, at::kByte);
  std::copy(values.begin(), values.end(), static_cast<std::uint8_t*>(tensor.data_ptr()));
  return tensor.getIntrusivePtr();
}

std::vector<std::uint8_t> content(const c10::intrusive_ptr<c10::TensorImpl>& state) {
  const auto* data = static_cast<const std::uint8_t*>(state->data());
  return {data, data + state->numel()};
}

}  // namespace

NPU_TEST(new_generators_have_the_documented_seed) {
  const at::Generator generator = npu::make_generator(1);
  CHECK_EQ(generator.current_seed(), 67280421310721u);
  CHECK_EQ(generator.get_offset(), 0u);
  CHECK_EQ(static_cast<int>(generator.device().index()), 1);
}

NPU_TEST(state_is_seed_and_offset) {
  at::Generator generator = npu::make_generator(0);
  generator.set_current_seed(1234);
  generator.set_offset(8);
  const std::vector<std::uint8_t> expected{210, 4, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0};
  auto* impl = generator.unsafeGetGeneratorImpl();
  CHECK(content(impl->get_state()) == expected);
  generator.set_current_seed(1);
  CHECK_EQ(generator.get_offset(), 0u);
  impl->set_state(*bytes(expected));
  CHECK_EQ(generator.current_seed(), 1234u);
  CHECK_EQ(generator.get_offset(), 8u);
  impl->set_state(*bytes({5, 0, 0, 0, 0, 0, 0, 0}));
  CHECK_EQ(generator.current_seed(), 5u);
  CHECK_EQ(generator.get_offset(), 0u);
}

NPU_TEST(bad_states_are_refused) {
  at::Generator generator = npu::make_generator(0);
  auto* impl = generator.unsafeGetGeneratorImpl();
  CHECK_THROWS(c10::Error, impl->set_state(*bytes({1, 2, 3})), "RNG state is wrong size");
  CHECK_THROWS(c10::Error, impl->set_state(*bytes({1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0})),
               "offset must be a multiple of 4");
  CHECK_THROWS(c10::Error, generator.set_offset(6), "offset must be a multiple of 4");
  CHECK_EQ(generator.current_seed(), 67280421310721u);  // a refused state changes nothing
  CHECK_THROWS(c10::TypeError, impl->set_state(*at::detail::empty_cpu({16}, at::kFloat).getIntrusivePtr()),
               "must be a torch.ByteTensor");
}

NPU_TEST(reservations_are_multiples_of_four) {
  const at::Generator generator = npu::make_generator(0);
  for (const auto& [count, offset] : {std::pair{1, 0}, {4, 4}, {5, 8}, {0, 16}, {1, 16}}) {
    const npu::PhiloxState state = npu::reserve_philox(generator, 0, static_cast<std::uint64_t>(count));
    CHECK_EQ(state.offset, static_cast<std::uint64_t>(offset));
    CHECK_EQ(state.seed, 67280421310721u);
  }
}

NPU_TEST(clones_are_independent) {
  at::Generator generator = npu::make_generator(0);
  generator.set_current_seed(3);
  generator.set_offset(12);
  at::Generator clone = generator.clone();
  CHECK_EQ(clone.current_seed(), 3u);
  CHECK_EQ(clone.get_offset(), 12u);
  npu::reserve_philox(clone, 0, 100);
  CHECK_EQ(generator.get_offset(), 12u);
}

NPU_TEST(default_generators_are_per_device_and_random) {
  const at::Generator& first = npu::default_generator(0);
  const at::Generator& second = npu::default_generator(1);
  CHECK(&first == &npu::default_generator(0));
  CHECK(first != second);
  CHECK(first.current_seed() != 67280421310721u);
  CHECK(first.current_seed() != second.current_seed());
  CHECK_EQ(npu::reserve_philox(std::nullopt, 0, 7).offset, 0u);
  CHECK_EQ(first.get_offset(), 8u);
  CHECK_THROWS(c10::Error, npu::default_generator(2), "Invalid device id");
}

NPU_TEST(generators_of_another_device_are_refused) {
  const at::Generator generator = npu::make_generator(1);
  CHECK_THROWS(c10::Error, npu::reserve_philox(generator, 0, 4), "Expected a generator of device npu:0");
}

NPU_TEST(concurrent_reservations_do_not_overlap) {
  npu::default_generator(0);
  std::vector<std::vector<std::uint64_t>> taken(4);
  std::vector<std::thread> threads;
  for (auto& mine : taken)
    threads.emplace_back([&mine] {
      for (int i = 0; i < 2000; ++i) mine.push_back(npu::reserve_philox(std::nullopt, 0, 4).offset);
    });
  for (std::thread& thread : threads) thread.join();
  std::vector<bool> seen(8000);
  for (const auto& mine : taken)
    for (const std::uint64_t offset : mine) {
      CHECK(!seen.at(offset / 4));
      seen[offset / 4] = true;
    }
}
