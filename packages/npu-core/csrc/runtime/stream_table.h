#pragma once
// What device.cpp needs to know about streams; not for other layers.
#include <vector>

#include "stream.h"

namespace npu {

std::vector<Stream*> live_streams(int device);
// Throws the stream's asynchronous error, if there is one, without waiting.
void raise_pending_error(Stream* stream);
// After a fork the surviving thread must go through initialize() again (which refuses).
void forget_current_streams() noexcept;

}  // namespace npu
