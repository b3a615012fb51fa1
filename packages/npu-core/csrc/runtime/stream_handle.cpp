#include "stream_handle.h"

#include <c10/util/Exception.h>

#include "device.h"
#include "error.h"
#include "stream_table.h"

namespace npu {

Stream* stream_from_handle(int device, std::uintptr_t handle) {
  check_device_index(device);
  for (Stream* stream : live_streams(device))
    if (reinterpret_cast<std::uintptr_t>(stream) == handle) return stream;
  TORCH_CHECK_VALUE(false, "npu: ", handle, " is no handle of a stream of npu:", device,
                    "; pass torch.npu.Stream.npu_stream of a stream of this device",
                    error_suffix(Submodule::PTA, ErrorCode::VALUE));
}

}  // namespace npu
