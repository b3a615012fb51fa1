// What went wrong on a stream, and on whose account.
#pragma once

#include <atomic>
#include <memory>

#include "npu/driver.h"

namespace npu::host {

// Shared by the stream that carries the error and by the markers recorded behind it.
struct Failure {
  npu_error error{};
  std::atomic<bool> taken{false};  // the host has heard of it: it spreads no further
  std::shared_ptr<Failure> cause;  // of the stream it came from, through an event
};

}  // namespace npu::host
