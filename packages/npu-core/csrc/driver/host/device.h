// One emulated device.
#pragma once

#include "arena.h"
#include "copy_engine.h"
#include "fault_injection.h"

namespace npu::host {

class ComputeEngine;

struct Device {
  Device(int index, ComputeEngine& compute_engine) : index(index), compute_engine(compute_engine) {}

  const int index;
  ComputeEngine& compute_engine;  // shared by all devices of the process
  CopyEngine copy_engine;
  FaultInjection faults;
  Arena arena;
};

}  // namespace npu::host
