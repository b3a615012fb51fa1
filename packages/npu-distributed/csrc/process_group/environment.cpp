#include "process_group/environment.h"

#include <c10/util/Exception.h>

#include <cerrno>
#include <cstdlib>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace npu::distributed {
namespace {

std::optional<long> Integer(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return std::nullopt;
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text, &end, 10);
  TORCH_CHECK(errno == 0 && *end == '\0', name, " should be an integer, but got \"", text, "\"");
  return value;
}

/// `TORCH_<name>`, or `<name>` with a deprecation warning.
std::optional<long> IntegerWithAlias(const std::string& name) {
  const std::string full = "TORCH_" + name;
  if (const auto value = Integer(full.c_str())) return value;
  const auto value = Integer(name.c_str());
  if (value) {
    TORCH_WARN_ONCE("Environment variable ", name, " is deprecated; use ", full, " instead");
  }
  return value;
}

}  // namespace

Environment Environment::Read() {
  using std::chrono::seconds;
  Environment environment;
  if (const auto value = Integer("HCCL_CONNECT_TIMEOUT")) {
    TORCH_CHECK(*value >= 120 && *value <= 7200, "HCCL_CONNECT_TIMEOUT should be in [120, 7200] seconds, but got ",
                *value);
    environment.connect_timeout = seconds(*value);
  }
  if (const auto value = Integer("HCCL_EXEC_TIMEOUT")) {
    if (*value < 0) {
      TORCH_WARN("HCCL_EXEC_TIMEOUT should not be negative, but got ", *value, "; 1836 seconds are used");
    } else {
      environment.execution_timeout = seconds(*value);
    }
  }
  if (const auto value = IntegerWithAlias("HCCL_ASYNC_ERROR_HANDLING")) {
    TORCH_CHECK(*value >= 0 && *value <= 3, "TORCH_HCCL_ASYNC_ERROR_HANDLING should be 0, 1, 2 or 3, but got ", *value);
    environment.error_handling = static_cast<ErrorHandling>(*value);
  }
  environment.blocking_wait = IntegerWithAlias("HCCL_BLOCKING_WAIT").value_or(0) == 1;
  if (environment.blocking_wait) environment.error_handling = ErrorHandling::kNone;
  environment.high_priority = Integer("TORCH_HCCL_HIGH_PRIORITY").value_or(0) == 1;
  if (const auto value = Integer("MULTI_STREAM_MEMORY_REUSE")) {
    TORCH_CHECK(*value >= 0 && *value <= 3, "MULTI_STREAM_MEMORY_REUSE should be 0, 1, 2 or 3, but got ", *value);
    environment.memory_reuse = static_cast<MemoryReuse>(*value);
  }
  environment.zero_copy = Integer("TORCH_HCCL_ZERO_COPY").value_or(0) == 1;
  if (const auto value = Integer("P2P_HCCL_BUFFSIZE")) {
    TORCH_CHECK(*value >= 0, "P2P_HCCL_BUFFSIZE should not be negative, but got ", *value);
    environment.point_to_point_megabytes = static_cast<size_t>(*value);
  }
  return environment;
}

std::chrono::milliseconds Environment::WorkTimeout(std::chrono::milliseconds group_timeout) const {
  if (group_timeout != kBackendDefaultTimeout || error_handling != ErrorHandling::kTearDown) return group_timeout;
  if (execution_timeout.count() == 0) return std::chrono::milliseconds(0);
  return execution_timeout + std::chrono::seconds(1800);
}

}  // namespace npu::distributed
