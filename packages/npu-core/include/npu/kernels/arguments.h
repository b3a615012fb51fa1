/* npu/kernels/arguments.h: argument errors of ops.
 *
 * A failed check says which op and argument, what was expected, what came and what to do, and throws a standard
 * exception that torch turns into the Python one: std::runtime_error -> RuntimeError, std::invalid_argument ->
 * ValueError, std::out_of_range -> IndexError.  Check everything before the first call into torch.
 */
#ifndef NPU_KERNELS_ARGUMENTS_H_
#define NPU_KERNELS_ARGUMENTS_H_

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <ctime>
#include <sstream>
#include <stdexcept>
#include <string>

#include "npu/runtime.h"

namespace npu::kernels {

/// The arguments streamed one after the other.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// The line that log scanners look for at the end of an op's error, or "" with TORCH_NPU_COMPACT_ERROR_OUTPUT=1.
/// `code` is the text after "ERR", for example "01001 OPS invalid parameter".
inline std::string error_code_line(const char* code) {
  const char* compact = std::getenv("TORCH_NPU_COMPACT_ERROR_OUTPUT");
  if (compact != nullptr && std::strcmp(compact, "1") == 0) return "";
  char when[32] = "";
  std::time_t now = std::time(nullptr);
  std::tm local;
  if (localtime_r(&now, &local) != nullptr) std::strftime(when, sizeof(when), "%Y-%m-%d-%H:%M:%S", &local);
  int32_t device = -1;
  const npu_runtime_api* runtime = npu_runtime();
  if (runtime != nullptr && runtime->current_device(&device) != NPU_OK) device = -1;
  const char* rank = std::getenv("RANK");
  return text("\n[ERROR] ", when, " (PID:", getpid(), ", Device:", device, ", RankID:", rank ? std::atoi(rank) : -1,
              ") ERR", code);
}

template <class Exception>
[[noreturn]] __attribute__((noinline, cold)) void raise_argument(const char* op, const char* argument,
                                                                 const std::string& message) {
  throw Exception(text(op, ": argument ", argument, ": ", message, error_code_line("01001 OPS invalid parameter")));
}

}  // namespace npu::kernels

/// NPU_CHECK_ARG(gamma.dim() == 1, "npu_rms_norm", "gamma", "expected ..., got ..., do ...")
#define NPU_CHECK_ARG(condition, op, argument, ...) \
  NPU_CHECK_ARG_AS(std::runtime_error, condition, op, argument, __VA_ARGS__)

/// The same with another exception: std::invalid_argument (ValueError) or std::out_of_range (IndexError).
#define NPU_CHECK_ARG_AS(exception, condition, op, argument, ...)                                     \
  do {                                                                                                \
    if (__builtin_expect(!(condition), 0)) {                                                          \
      ::npu::kernels::raise_argument<exception>((op), (argument), ::npu::kernels::text(__VA_ARGS__)); \
    }                                                                                                 \
  } while (false)

#endif  // NPU_KERNELS_ARGUMENTS_H_
