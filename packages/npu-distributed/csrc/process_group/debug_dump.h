// Files for whoever looks at a job that hangs: the flight recorder's entries and the Python stacks of a process.
#pragma once

#include <cstdint>

#include "process_group/environment.h"

namespace npu::distributed {

/// Writes `<stem><rank>` and `<stem><rank>_py_traceback` within the configured time.  Python stacks need the
/// interpreter lock; when a thread keeps it for all that time, the first file is written without frames and the second
/// is left out. Does nothing while the recorder is off.
void WriteDebugDump(const DiagnosisSettings& settings, uint64_t global_rank) noexcept;

}  // namespace npu::distributed
