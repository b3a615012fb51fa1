// Status plus text of the calling thread's last failed call.
#pragma once

#include "npu/driver.h"

namespace npu::host {

// Keeps the formatted text for last_error() and returns `status`.
[[gnu::format(printf, 2, 3)]] npu_status fail(npu_status status, const char* format, ...);

// The same for a failed system call: appends the text of errno and returns NPU_ERROR_SYSTEM.
[[gnu::format(printf, 1, 2)]] npu_status fail_errno(const char* format, ...);

const char* last_error();

// Copies the calling thread's last failure into `error` (of a direct call: no op name).
void export_last_error(npu_status status, npu_error* error);

void copy_text(char* target, size_t size, const char* text);

}  // namespace npu::host
