#pragma once
// What device.cpp needs to know about streams; not for other layers.
#include <vector>

#include "npu/driver.h"
#include "stream.h"

namespace npu {

// First words of every error on a stopped device.
inline constexpr const char* kForceStop = "FORCE STOP.";

std::vector<Stream*> live_streams(int device);
// Waits for the stream.  True when it failed; `error` is then what went wrong and the stream is usable again.
bool wait_and_take_error(Stream* stream, Wait wait, npu_error* error);
// Also concerns the streams created from now on, except those for synchronous launches.
void stop_streams(int device);
void resume_streams(int device);
// Throws the stream's asynchronous error, if there is one, without waiting.
void raise_pending_error(Stream* stream);
// After a fork the surviving thread must go through initialize() again (which refuses).
void forget_current_streams() noexcept;

}  // namespace npu
