#pragma once
#include <cstdint>

#include "export.h"
#include "stream.h"

namespace npu {

// The stream of `device` whose handle (address) a foreign library holds.  Throws when there is none.
NPU_RUNTIME_API Stream* stream_from_handle(int device, std::uintptr_t handle);

}  // namespace npu
