#pragma once
#include <cstddef>

#include "runtime/stream.h"

namespace npu::aten {

// dst <- host bytes, in stream order.  The host memory may be changed or freed when it returns.
void copy_from_host(Stream* stream, void* dst, const void* host, std::size_t bytes);

}  // namespace npu::aten
