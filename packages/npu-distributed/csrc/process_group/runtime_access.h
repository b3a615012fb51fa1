// The runtime of npu-core as this wheel uses it: found at run time, failures as exceptions.
#pragma once

#include <c10/core/Stream.h>

#include <memory>

#include "npu/runtime.h"
#include "transport/device_memory.h"

namespace npu::distributed {

/// The table of npu-core; throws c10::Error with advice when torch_npu is not loaded.
const npu_runtime_api& Runtime();

/// Throws c10::Error with the runtime's text unless `status` is NPU_OK.
void CheckRuntime(npu_status status, const char* what);

int CurrentDevice();

/// The stream as torch names it.
c10::Stream AsTorchStream(npu_stream* stream, int device);

/// Memory of the runtime's devices.
class RuntimeMemory final : public DeviceMemory {
 public:
  npu_memory_handle Export(const void* address, size_t bytes) override;
  void* Import(const npu_memory_handle& handle, size_t bytes) override;
  void Close(void* address) noexcept override;
};

struct EventDeleter {
  void operator()(npu_event* event) const noexcept;
};
using EventPtr = std::unique_ptr<npu_event, EventDeleter>;
EventPtr MakeEvent();

}  // namespace npu::distributed
