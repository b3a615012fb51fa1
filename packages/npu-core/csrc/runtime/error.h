#pragma once
#include <string>

#include "export.h"
#include "npu/driver.h"

namespace npu {

// Error codes of the plugin, as users' tools parse them: "ERR<submodule><code> <MODULE> <text>".
enum class Submodule { PTA = 0, OPS = 1, DIST = 2, GRAPH = 3, PROF = 4 };
enum class ErrorCode {
  PARAM = 1,
  TYPE = 2,
  VALUE = 3,
  PTR = 4,
  INTERNAL = 5,
  MEMORY = 6,
  NOT_SUPPORT = 7,
  NOT_FOUND = 8,
  UNAVAIL = 9,
  SYSCALL = 10,
  TIMEOUT = 11,
  PERMISSION = 12,
  ACL = 100,
  HCCL = 200,
};

// "\n[ERROR] <time> (PID:.., Device:.., RankID:..) ERR00001 PTA invalid parameter".
NPU_RUNTIME_API std::string error_suffix(Submodule submodule, ErrorCode code);

// False under TORCH_NPU_WARNING_DISABLE=1 and on all ranks of a job but the first: plugin warnings are then silent.
NPU_RUNTIME_API bool warnings_wanted() noexcept;

// Throws the c10 exception that fits `status` (IndexError, ValueError, NotImplementedError, OutOfMemoryError, Error)
// with the failing op named.  `context` is the host call that found the failure.
[[noreturn]] NPU_RUNTIME_API void throw_task_error(const npu_error& error, const char* context);
[[noreturn]] NPU_RUNTIME_API void throw_driver_error(npu_status status, const char* call);

// Checks a direct driver call.
inline void check(npu_status status, const char* call) {
  if (__builtin_expect(status != NPU_OK, 0)) throw_driver_error(status, call);
}

// Fills `error` from the exception being handled (call inside a catch block) and returns its status.
NPU_RUNTIME_API npu_status capture_exception(npu_error* error) noexcept;

}  // namespace npu
