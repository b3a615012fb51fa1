// Communication streams: each lane has one that no other living lane uses, as long as the pool has enough.
#pragma once

#include <memory>

#include "process_group/runtime_access.h"

namespace npu::distributed {

/// A stream of the device's pool.  The pool hands its streams out in turn, whoever still uses them; two groups on one
/// stream would wait for each other when ranks call them in different orders.  Streams in use are therefore passed
/// over; when all are, the one with the fewest users is shared.  Throws c10::Error when the device has no streams.
std::shared_ptr<npu_stream> LeaseStream(int device, int priority);

}  // namespace npu::distributed
