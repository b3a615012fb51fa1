#pragma once
// Symbols other npu-core libraries (libnpu_host, _C) may use.  Everything else is hidden.
#define NPU_RUNTIME_API __attribute__((visibility("default")))
