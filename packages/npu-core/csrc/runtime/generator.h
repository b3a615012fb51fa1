#pragma once
#include <ATen/core/Generator.h>

#include <memory>
#include <mutex>
#include <optional>

#include "export.h"

namespace npu {

// (seed, offset) of a reserved range of Philox4x32-10 counters.
struct PhiloxState {
  std::uint64_t seed;
  std::uint64_t offset;
};

// Philox generator: state = (seed, offset), offset a multiple of 4.  16 bytes of state: little-endian seed, offset.
class NPU_RUNTIME_API NpuGenerator final : public c10::GeneratorImpl {
 public:
  explicit NpuGenerator(c10::DeviceIndex device);
  static c10::DeviceType device_type() { return c10::DeviceType::PrivateUse1; }

  void set_current_seed(std::uint64_t seed) override;
  void set_offset(std::uint64_t offset) override;
  std::uint64_t get_offset() const override;
  std::uint64_t current_seed() const override;
  std::uint64_t seed() override;
  void set_state(const c10::TensorImpl& state) override;
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override;
  // The state as an object: a generator that shares it with this one, so that both advance together.
  c10::intrusive_ptr<c10::GeneratorImpl> graphsafe_get_state() const override;
  // Shares the state of `state`, a generator of the same device.
  void graphsafe_set_state(const c10::intrusive_ptr<c10::GeneratorImpl>& state) override;

  // Takes `count` values (rounded up to a multiple of 4).
  PhiloxState reserve(std::uint64_t count);

 private:
  // Has a lock of its own, because generators that share it do not share theirs.
  struct State {
    std::mutex mutex;
    PhiloxState philox{};
  };

  PhiloxState now() const;
  void set(PhiloxState philox);
  NpuGenerator* clone_impl() const override;

  std::shared_ptr<State> state_;
};

NPU_RUNTIME_API const at::Generator& default_generator(int device = -1);
NPU_RUNTIME_API at::Generator make_generator(int device = -1);
// Reserves `count` values of the given generator, or of the device's default one.
NPU_RUNTIME_API PhiloxState reserve_philox(const std::optional<at::Generator>& generator, int device,
                                           std::uint64_t count);

}  // namespace npu
