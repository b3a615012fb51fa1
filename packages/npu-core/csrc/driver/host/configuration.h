// What the environment says about the emulated devices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "npu/driver.h"

namespace npu::host {

constexpr int kMaxDevices = 64;
constexpr size_t kMemoryGranularity = size_t{2} << 20;

struct Configuration {
  int device_count = 1;
  size_t memory_bytes = size_t{64} << 30;  // per device
  std::string soc = "Ascend910B1";
  int soc_version = 220;
  // A copy this long goes to the copy engine; shorter ones cost less than the hop (measured: see writing-a-driver.md).
  size_t copy_threshold = size_t{1} << 20;
  int64_t spin_ns = 100'000;
};

// Reads only NPU_HOST_DEVICE_COUNT / LOCAL_WORLD_SIZE.
npu_status read_device_count(int* count);
// Reads everything.  On failure the text names the variable, its value and what is accepted.
npu_status read_configuration(Configuration* configuration);

}  // namespace npu::host
