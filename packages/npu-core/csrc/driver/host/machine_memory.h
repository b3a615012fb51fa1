// How much memory this machine, or the container the process runs in, can still give.
#pragma once

#include <cstddef>

namespace npu::host {

// Device memory is committed by touching it, and Linux answers a touch it cannot satisfy by killing a process.
// memory_map therefore refuses what would not leave this much over.
constexpr size_t kMemoryMargin = size_t{256} << 20;

// The smaller of MemAvailable and what the limit of the control group leaves; SIZE_MAX when neither is known.
size_t available_machine_memory();

}  // namespace npu::host
