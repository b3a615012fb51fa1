// Waiting on the host for a collective, so that Ctrl-C ends the wait.
#pragma once

#include <chrono>

#include "process_group/call_record.h"

namespace npu::distributed {

/// CallRecord::WaitFor that raises KeyboardInterrupt (or what else a signal handler of Python raises) in the main
/// thread.  Call it without the interpreter lock.
bool WaitInterruptibly(const CallRecord& record, std::chrono::milliseconds limit);

}  // namespace npu::distributed
