/* npu/kernels/launch.h: run an op's work, on the stream of an npu tensor or right here for a CPU tensor.
 *
 * The payload is flat bytes with raw pointers.  Nothing holds the tensors it points to: memory of the caching
 * allocator is freed in stream order, so a block released after launch() is not reused before the task has run.
 * Tensors that were allocated on another stream are the caller's responsibility (Tensor.record_stream), as everywhere
 * in torch.
 */
#ifndef NPU_KERNELS_LAUNCH_H_
#define NPU_KERNELS_LAUNCH_H_

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "npu/kernels/stable_tensor.h"
#include "npu/runtime.h"

namespace npu::kernels {

inline npu_access reads(const Tensor& tensor) {
  return {tensor.data_ptr(), static_cast<size_t>(bytes_of(tensor)), 0, 0};
}

inline npu_access writes(const Tensor& tensor) {
  return {tensor.data_ptr(), static_cast<size_t>(bytes_of(tensor)), 1, 0};
}

/// None is an access of no bytes.
inline npu_access reads(const OptionalTensor& tensor) {
  return tensor.has_value() ? reads(*tensor) : npu_access{nullptr, 0, 0, 0};
}

/// Throws what `status` stands for in Python (driver.h names the exceptions).
[[noreturn]] __attribute__((noinline, cold)) inline void raise_status(npu_status status, const std::string& message) {
  switch (status) {
    case NPU_ERROR_INVALID_ARGUMENT:
      throw std::invalid_argument(message);
    case NPU_ERROR_INDEX:
      throw std::out_of_range(message);
    default:
      throw std::runtime_error(message);
  }
}

/// Runs `run` on a copy of `payload`: queued on the current stream of an npu device, before this returns on the CPU.
///
/// `name` is a static string, "npu::npu_rms_norm".  `accesses` lists what the task reads and writes, for the profiler,
/// the sanitizer and dumps.
template <class Payload>
void launch(const Device& device, const char* name, npu_task_fn run, Payload payload, const npu_access* accesses,
            size_t access_count) {
  static_assert(std::is_trivially_copyable_v<Payload>, "a payload is flat bytes");
  if (device.is_cpu()) {
    npu_error error;  // 4 KiB: cleared only where it is read
    error.message[0] = '\0';
    npu_status status = run(&payload, &error);
    if (status != NPU_OK) raise_status(status, text(name, ": ", error.message));
    return;
  }
  const npu_runtime_api* runtime = npu_runtime();
  if (runtime == nullptr) {
    throw std::runtime_error(text(name, ": the tensors are on ", device.name(),
                                  " but no npu runtime is loaded in this process; install npu-core and import "
                                  "torch_npu before calling the op",
                                  error_code_line("01008 OPS resource not found")));
  }
  npu_stream* stream = runtime->current_stream(device.index);
  if (stream == nullptr) {
    throw std::runtime_error(text(name, ": ", device.name(), " has no current stream: ", runtime->last_error()));
  }
  npu_task task{};
  task.run = run;
  task.name = name;
  task.payload = &payload;
  task.payload_size = sizeof(payload);
  task.kind = NPU_TASK_COMPUTE;
  npu_status status = runtime->launch(stream, &task, accesses, static_cast<uint32_t>(access_count));
  if (status != NPU_OK) raise_status(status, text(name, ": ", runtime->last_error()));
}

template <class Payload>
void launch(const Device& device, const char* name, npu_task_fn run, const Payload& payload,
            std::initializer_list<npu_access> accesses) {
  launch(device, name, run, payload, accesses.begin(), accesses.size());
}

}  // namespace npu::kernels

#endif  // NPU_KERNELS_LAUNCH_H_
