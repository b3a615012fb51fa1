#include "process_group/runtime_access.h"

#include <c10/util/Exception.h>

#include <string>

#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

[[noreturn]] void ThrowComm(npu_status status, const char* what) {
  throw CommError(status, std::string("hccl: ") + what + ": " + Runtime().last_error());
}

}  // namespace

const npu_runtime_api& Runtime() {
  const npu_runtime_api* runtime = npu_runtime();
  TORCH_CHECK(runtime != nullptr,
              "backend \"hccl\" moves tensors of npu devices, but npu-core is not loaded: "
              "pip install npu-core and `import torch_npu` first");
  return *runtime;
}

void CheckRuntime(npu_status status, const char* what) {
  TORCH_CHECK(status == NPU_OK, "hccl: ", what, " failed: ", Runtime().last_error());
}

int CurrentDevice() {
  int32_t device = 0;
  CheckRuntime(Runtime().current_device(&device), "reading the current device");
  return device;
}

c10::Stream AsTorchStream(npu_stream* stream, int device) {
  return c10::Stream(c10::Stream::UNSAFE,
                     c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device)),
                     Runtime().stream_id(stream));
}

npu_memory_handle RuntimeMemory::Export(const void* address, size_t bytes) {
  npu_memory_handle handle{};
  const npu_status status = Runtime().memory_export(address, bytes, &handle);
  if (status != NPU_OK) ThrowComm(status, "exporting device memory");
  return handle;
}

void* RuntimeMemory::Import(const npu_memory_handle& handle, size_t bytes) {
  void* address = nullptr;
  size_t imported = 0;
  const npu_status status = Runtime().memory_import(&handle, &address, &imported);
  if (status != NPU_OK) ThrowComm(status, "mapping the memory of a peer");
  if (imported < bytes) {
    Runtime().memory_close(address);
    throw CommError(NPU_ERROR_SYSTEM, "hccl: mapping the memory of a peer: expected " + std::to_string(bytes) +
                                          " bytes, got " + std::to_string(imported));
  }
  return address;
}

void RuntimeMemory::Close(void* address) noexcept { Runtime().memory_close(address); }

void EventDeleter::operator()(npu_event* event) const noexcept { Runtime().event_destroy(event); }

EventPtr MakeEvent() {
  npu_event* event = nullptr;
  CheckRuntime(Runtime().event_create(&event), "creating an event");
  return EventPtr(event);
}

}  // namespace npu::distributed
