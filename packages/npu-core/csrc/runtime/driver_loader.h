#pragma once
#include "export.h"
#include "npu/driver.h"

namespace npu {

// The active driver's table.  The first call loads libnpu_<NPU_DRIVER>.so from this library's folder (default
// "host"); throws when it is missing or of another interface version.
NPU_RUNTIME_API const npu_driver& driver();
NPU_RUNTIME_API const char* driver_name();

}  // namespace npu
