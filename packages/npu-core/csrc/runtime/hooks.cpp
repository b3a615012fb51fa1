// torch's hooks for npu: what generic torch code asks a backend beyond the guard.
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/StorageImpl.h>

#include <algorithm>

#include "caching_allocator.h"
#include "device.h"
#include "driver_loader.h"
#include "error.h"
#include "generator.h"
#include "pinned_memory.h"
#include "stream.h"

namespace npu {
namespace {

class Hooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return device_count() > 0; }
  bool hasPrimaryContext(c10::DeviceIndex /*device*/) const override { return is_initialized(); }
  void init() const override { initialize(); }

  c10::DeviceIndex deviceCount() const override { return static_cast<c10::DeviceIndex>(device_count()); }
  c10::DeviceIndex getCurrentDevice() const override { return static_cast<c10::DeviceIndex>(current_device()); }
  void setCurrentDevice(c10::DeviceIndex device) const override { set_device(device); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    return static_cast<c10::DeviceIndex>(exchange_device(device));
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override { return exchangeDevice(device); }

  c10::Allocator* getPinnedMemoryAllocator() const override { return pinned_allocator(); }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }

  at::Device getDeviceFromPtr(void* data) const override {
    int physical = 0;
    check(driver().memory_owner(data, &physical), "memory_owner");
    for (int d = 0; d < device_count(); ++d) {
      if (driver_device(d) == physical) return {c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(d)};
    }
    TORCH_CHECK(false, "npu: the pointer belongs to a device that is not visible");
  }

  const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const override { return default_generator(device); }
  at::Generator getNewGenerator(c10::DeviceIndex device) const override { return make_generator(device); }

  // UntypedStorage.resize_: exactly `bytes`, keeping what fits.
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    TORCH_CHECK(impl->resizable(), "Trying to resize storage that is not resizable");
    const auto device = impl->device();
    if (bytes == 0) {
      impl->set_data_ptr_noswap(c10::DataPtr(nullptr, device));
      impl->set_nbytes(0);
      return;
    }
    Stream* stream = current_stream(device.index());
    auto fresh = caching_allocator().allocate_on(bytes, stream);
    if (const size_t kept = std::min(bytes, impl->nbytes()); kept != 0) {
      copy_memory(stream, fresh.get(), impl->data(), kept);
    }
    impl->set_data_ptr_noswap(std::move(fresh));
    impl->set_nbytes(bytes);
  }
};

[[maybe_unused]] const bool g_registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks);  // lives as long as torch
  c10::SetAllocator(c10::DeviceType::PrivateUse1, &caching_allocator());
  return true;
}();

}  // namespace
}  // namespace npu
