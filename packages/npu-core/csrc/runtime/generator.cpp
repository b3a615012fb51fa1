#include "generator.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>

#include <array>
#include <cstring>
#include <memory>
#include <mutex>

#include "device.h"
#include "error.h"

namespace npu {
namespace {

constexpr std::size_t kSeedBytes = sizeof(std::uint64_t);
constexpr std::size_t kStateBytes = 2 * kSeedBytes;
constexpr std::uint64_t kGroup = 4;  // values one Philox4x32 counter yields

void check_offset(std::uint64_t offset) {
  TORCH_CHECK(offset % kGroup == 0, "offset must be a multiple of 4, but got ", offset,
              error_suffix(Submodule::PTA, ErrorCode::VALUE));
}

int resolve(int device) {
  if (device < 0) return current_device();
  check_device_index(device);
  return device;
}

struct DefaultGenerator {
  std::once_flag once;
  at::Generator generator;
};

}  // namespace

NpuGenerator::NpuGenerator(c10::DeviceIndex device)
    : c10::GeneratorImpl(c10::Device(c10::DeviceType::PrivateUse1, device),
                         c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
      state_(std::make_shared<State>()) {
  set({c10::default_rng_seed_val, 0});
}

PhiloxState NpuGenerator::now() const {
  std::lock_guard lock(state_->mutex);
  return state_->philox;
}

void NpuGenerator::set(PhiloxState philox) {
  std::lock_guard lock(state_->mutex);
  state_->philox = philox;
}

void NpuGenerator::set_current_seed(std::uint64_t seed) { set({seed, 0}); }

void NpuGenerator::set_offset(std::uint64_t offset) {
  check_offset(offset);
  std::lock_guard lock(state_->mutex);
  state_->philox.offset = offset;
}

std::uint64_t NpuGenerator::get_offset() const { return now().offset; }

std::uint64_t NpuGenerator::current_seed() const { return now().seed; }

std::uint64_t NpuGenerator::seed() {
  const std::uint64_t random = c10::detail::getNonDeterministicRandom(true);
  set_current_seed(random);
  return random;
}

void NpuGenerator::set_state(const c10::TensorImpl& state) {
  at::detail::check_rng_state(state);
  const auto bytes = static_cast<std::size_t>(state.numel());
  TORCH_CHECK(bytes == kStateBytes || bytes == kSeedBytes, "RNG state is wrong size: expected ", kStateBytes,
              " bytes (seed and offset) or ", kSeedBytes, " (seed only), but got ", bytes,
              error_suffix(Submodule::PTA, ErrorCode::VALUE));
  const auto* data = static_cast<const std::uint8_t*>(state.data());
  std::uint64_t seed = 0;
  std::uint64_t offset = 0;
  std::memcpy(&seed, data, kSeedBytes);
  if (bytes == kStateBytes) std::memcpy(&offset, data + kSeedBytes, kSeedBytes);
  check_offset(offset);
  set({seed, offset});
}

c10::intrusive_ptr<c10::TensorImpl> NpuGenerator::get_state() const {
  const at::Tensor state = at::detail::empty_cpu({static_cast<std::int64_t>(kStateBytes)}, at::kByte);
  const PhiloxState philox = now();
  auto* data = state.mutable_data_ptr<std::uint8_t>();
  std::memcpy(data, &philox.seed, kSeedBytes);
  std::memcpy(data + kSeedBytes, &philox.offset, kSeedBytes);
  return state.getIntrusivePtr();
}

c10::intrusive_ptr<c10::GeneratorImpl> NpuGenerator::graphsafe_get_state() const {
  auto same = c10::make_intrusive<NpuGenerator>(device_.index());
  same->state_ = state_;
  return same;
}

void NpuGenerator::graphsafe_set_state(const c10::intrusive_ptr<c10::GeneratorImpl>& state) {
  const auto* other = dynamic_cast<const NpuGenerator*>(state.get());
  TORCH_CHECK(other != nullptr && other->device() == device_, "graphsafe_set_state: expected a generator of device ",
              device_, ", as graphsafe_get_state() or clone_state() of one returns it, but got ",
              state ? state->device().str() : std::string("none"), error_suffix(Submodule::PTA, ErrorCode::PARAM));
  state_ = other->state_;
}

PhiloxState NpuGenerator::reserve(std::uint64_t count) {
  std::lock_guard lock(state_->mutex);
  const PhiloxState taken = state_->philox;
  state_->philox.offset += (count + kGroup - 1) / kGroup * kGroup;
  return taken;
}

NpuGenerator* NpuGenerator::clone_impl() const {
  auto copy = std::make_unique<NpuGenerator>(device_.index());
  copy->set(now());
  return copy.release();
}

const at::Generator& default_generator(int device) {
  static auto* generators = new std::array<DefaultGenerator, kMaxDevices>;
  const int index = resolve(device);
  DefaultGenerator& slot = (*generators)[static_cast<std::size_t>(index)];
  std::call_once(slot.once, [&] {
    slot.generator = make_generator(index);
    slot.generator.seed();
  });
  return slot.generator;
}

at::Generator make_generator(int device) {
  return at::make_generator<NpuGenerator>(static_cast<c10::DeviceIndex>(resolve(device)));
}

PhiloxState reserve_philox(const std::optional<at::Generator>& generator, int device, std::uint64_t count) {
  const bool given = generator.has_value() && generator->defined();
  if (given) {
    TORCH_CHECK(generator->device().type() == NpuGenerator::device_type(),
                "Expected a 'npu' generator device but found '", generator->device().type(),
                "'; create it with torch.Generator(device=\"npu\")", error_suffix(Submodule::PTA, ErrorCode::PARAM));
    const int index = resolve(device);
    TORCH_CHECK(generator->device().index() == index, "Expected a generator of device npu:", index,
                " but found one of npu:", static_cast<int>(generator->device().index()),
                "; create it with torch.Generator(device=\"npu:", index, "\")",
                error_suffix(Submodule::PTA, ErrorCode::PARAM));
  }
  at::Generator chosen = given ? *generator : default_generator(device);
  std::lock_guard lock(chosen.mutex());
  return chosen.get<NpuGenerator>()->reserve(count);
}

}  // namespace npu
