#pragma once
#include <ATen/core/Generator.h>

#include <optional>
#include <utility>

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

  // Takes `count` values (rounded up to a multiple of 4).  Call with mutex_ held.
  PhiloxState reserve(std::uint64_t count);

 private:
  NpuGenerator* clone_impl() const override;
  std::uint64_t seed_;
  std::uint64_t offset_ = 0;
};

NPU_RUNTIME_API const at::Generator& default_generator(int device = -1);
NPU_RUNTIME_API at::Generator make_generator(int device = -1);
// Locks the given generator (or the device's default one) and reserves `count` values.
NPU_RUNTIME_API PhiloxState reserve_philox(const std::optional<at::Generator>& generator, int device,
                                           std::uint64_t count);

}  // namespace npu
