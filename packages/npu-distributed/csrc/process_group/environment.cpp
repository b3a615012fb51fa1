#include "process_group/environment.h"

#include <c10/util/Exception.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace npu::distributed {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::optional<std::string> Text(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return std::nullopt;
  return text;
}

std::optional<long> Integer(const char* name) {
  const auto text = Text(name);
  if (!text) return std::nullopt;
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text->c_str(), &end, 10);
  TORCH_CHECK(errno == 0 && *end == '\0', name, " should be an integer, but got \"", *text, "\"");
  return value;
}

long IntegerIn(const char* name, long default_value, long smallest, long largest = INT_MAX) {
  const long value = Integer(name).value_or(default_value);
  TORCH_CHECK(value >= smallest && value <= largest, name, " should be in [", smallest, ", ", largest, "], but got ",
              value);
  return value;
}

bool Flag(const char* name) { return IntegerIn(name, 0, 0, 1) == 1; }

/// `TORCH_<name>`, or `<name>` with a deprecation warning.
std::optional<long> IntegerWithAlias(const std::string& name) {
  const std::string full = "TORCH_" + name;
  if (const auto value = Integer(full.c_str())) return value;
  const auto value = Integer(name.c_str());
  if (value) TORCH_WARN("Environment variable ", name, " is deprecated; use ", full, " instead");
  return value;
}

void ReadTimeouts(Environment& environment) {
  environment.connect_timeout = seconds(IntegerIn("HCCL_CONNECT_TIMEOUT", 120, 120, 7200));
  if (const long value = IntegerIn("HCCL_EXEC_TIMEOUT", 1836, INT_MIN); value < 0) {
    TORCH_WARN("HCCL_EXEC_TIMEOUT should not be negative, but got ", value, "; 1836 seconds are used");
  } else {
    environment.execution_timeout = seconds(value);
  }
  const milliseconds execution = environment.execution_timeout;
  environment.event_timeout = execution.count() == 0 ? milliseconds(0) : execution + seconds(30);
  if (Integer("HCCL_EVENT_TIMEOUT")) {
    environment.event_timeout = seconds(IntegerIn("HCCL_EVENT_TIMEOUT", 0, 0));
    const milliseconds event = environment.event_timeout;
    if (event.count() != 0 && (execution.count() == 0 || event <= execution)) {
      TORCH_WARN("HCCL_EVENT_TIMEOUT=", event.count() / 1000,
                 " should be longer than HCCL_EXEC_TIMEOUT=", execution.count() / 1000,
                 "; a wait ends with the collective it waits for");
    }
  }
}

void ReadErrorHandling(Environment& environment) {
  if (const auto value = IntegerWithAlias("HCCL_ASYNC_ERROR_HANDLING")) {
    TORCH_CHECK(*value >= 0 && *value <= 3, "TORCH_HCCL_ASYNC_ERROR_HANDLING should be 0, 1, 2 or 3, but got ", *value);
    environment.error_handling = static_cast<ErrorHandling>(*value);
  }
  environment.blocking_wait = IntegerWithAlias("HCCL_BLOCKING_WAIT").value_or(0) == 1;
  bool& desync = environment.diagnosis.desync;
  desync = IntegerWithAlias("HCCL_DESYNC_DEBUG").value_or(0) == 1;
  if (environment.blocking_wait) {
    // Whoever waits hears of the failure, so nobody needs to watch.
    environment.error_handling = ErrorHandling::kNone;
    desync = false;
  } else if (desync && environment.error_handling == ErrorHandling::kNone) {
    TORCH_WARN("TORCH_HCCL_DESYNC_DEBUG=1 needs works to be watched: TORCH_HCCL_ASYNC_ERROR_HANDLING=3 is used");
    environment.error_handling = ErrorHandling::kTearDownOnly;
  }
}

void ReadTransport(Environment& environment) {
  environment.high_priority = Flag("TORCH_HCCL_HIGH_PRIORITY");
  environment.memory_reuse = static_cast<MemoryReuse>(IntegerIn("MULTI_STREAM_MEMORY_REUSE", 1, 0, 3));
  environment.buffer_megabytes = static_cast<size_t>(IntegerIn("HCCL_BUFFSIZE", 200, 1));
  environment.point_to_point_megabytes = static_cast<size_t>(IntegerIn("P2P_HCCL_BUFFSIZE", 20, 0));
  environment.derived_communicators = Flag("ROOTINFO_SUBCOMM_ENABLE");
  environment.zero_copy = Flag("TORCH_HCCL_ZERO_COPY");
  if (environment.zero_copy) {
    const std::string allocator = Text("PYTORCH_NPU_ALLOC_CONF").value_or(Text("PYTORCH_ALLOC_CONF").value_or(""));
    TORCH_CHECK(allocator.find("expandable_segments:True") != std::string::npos,
                "TORCH_HCCL_ZERO_COPY=1 requires PYTORCH_NPU_ALLOC_CONF=expandable_segments:True, but that is \"",
                allocator, "\"");
  }
  if (const auto deterministic = Text("HCCL_DETERMINISTIC")) {
    const char* const known[] = {"true", "false", "strict"};
    bool found = false;
    for (const char* word : known) found = found || strcasecmp(deterministic->c_str(), word) == 0;
    TORCH_CHECK(found, "HCCL_DETERMINISTIC should be true, false or strict, but got \"", *deterministic, "\"");
  }
  if (const auto path = Text("RANK_TABLE_FILE")) {
    struct stat status{};
    const bool usable =
        lstat(path->c_str(), &status) == 0 && S_ISREG(status.st_mode) && access(path->c_str(), R_OK) == 0;
    if (usable) {
      environment.rank_table = *path;
    } else {
      TORCH_WARN("RANK_TABLE_FILE=", *path, " is not a readable regular file; ranks find each other through the store");
    }
  }
}

void ReadDiagnosis(DiagnosisSettings& diagnosis) {
  diagnosis.monitoring = Flag("TORCH_HCCL_ENABLE_MONITORING");
  diagnosis.heartbeat_timeout = seconds(IntegerIn("TORCH_HCCL_HEARTBEAT_TIMEOUT_SEC", 600, 1));
  diagnosis.coordination = milliseconds(IntegerIn("TORCH_HCCL_COORD_CHECK_MILSEC", 1000, 1));
  diagnosis.dump_on_timeout = Flag("TORCH_HCCL_DUMP_ON_TIMEOUT");
  diagnosis.dump_limit = milliseconds(IntegerIn("TORCH_HCCL_WAIT_TIMEOUT_DUMP_MILSEC", 60'000, 0));
  diagnosis.trace_entries = static_cast<size_t>(IntegerIn("TORCH_HCCL_TRACE_BUFFER_SIZE", 0, 0));
  if (auto stem = Text("TORCH_HCCL_DEBUG_INFO_TEMP_FILE")) diagnosis.dump_stem = *stem;
  diagnosis.pipe_stem = Text("TORCH_HCCL_DEBUG_INFO_PIPE_FILE").value_or("");
  diagnosis.status_files = Flag("TORCH_HCCL_STATUS_SAVE_ENABLE");
  if (auto folder = Text("TORCH_HCCL_STATUS_SAVE_PATH")) diagnosis.status_folder = *folder;
  diagnosis.status_interval = seconds(IntegerIn("TORCH_HCCL_STATUS_SAVE_INTERVAL", 2, 1));
  diagnosis.traffic_folder = Text("NSLB_CP").value_or("");
  diagnosis.traffic_limit = static_cast<size_t>(IntegerIn("NSLB_MAX_RECORD_NUM", 1000, 1));
}

}  // namespace

Environment Environment::Read() {
  Environment environment;
  ReadTimeouts(environment);
  ReadDiagnosis(environment.diagnosis);
  ReadErrorHandling(environment);
  ReadTransport(environment);
  return environment;
}

milliseconds Environment::WorkTimeout(milliseconds group_timeout) const {
  if (group_timeout != kBackendDefaultTimeout || error_handling != ErrorHandling::kTearDown) return group_timeout;
  if (execution_timeout.count() == 0) return milliseconds(0);
  return execution_timeout + seconds(1800);
}

void Environment::WarnIfTimeoutIsShort(milliseconds group_timeout) const {
  if (group_timeout == kBackendDefaultTimeout || error_handling != ErrorHandling::kTearDown) return;
  if (group_timeout > execution_timeout && execution_timeout.count() != 0) return;
  TORCH_WARN_ONCE("hccl: the timeout of the process group, ", group_timeout.count(),
                  " ms, is not longer than HCCL_EXEC_TIMEOUT=", execution_timeout.count() / 1000,
                  " s: a collective ends the process before the transport reports which rank is missing");
}

}  // namespace npu::distributed
