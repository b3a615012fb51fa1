#include "process_group/traffic_record.h"

#include <c10/util/Exception.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>

#include "process_group/file_output.h"

namespace npu::distributed {
namespace {

std::string Required(const char* name) {
  const char* value = std::getenv(name);
  TORCH_CHECK(value != nullptr && *value != '\0', "hccl: the traffic record (NSLB_CP) needs the variable ", name,
              ", which is not set; start the job with torchrun, set it, or unset NSLB_CP");
  return value;
}

}  // namespace

TrafficRecord& TrafficRecord::Instance() {
  static TrafficRecord* record = new TrafficRecord;
  return *record;
}

void TrafficRecord::Add(const DiagnosisSettings& settings, const std::string& communicator, const std::string& op,
                        size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (count_ >= settings.traffic_limit) return;
  const std::string rank = Required("RANK");
  const std::string master = Required("MASTER_ADDR");
  const std::string folder = settings.traffic_folder + "/";
  const std::string path = folder + master + "_" + communicator + "_" + rank + ".log";
  std::string line = op;
  std::transform(line.begin(), line.end(), line.begin(), [](unsigned char c) { return std::tolower(c); });
  line += " " + std::to_string(bytes) + " " + rank;
  const char* algorithm = std::getenv("HCCL_ALGO");
  std::error_code ignored;
  if (algorithm != nullptr && !std::filesystem::exists(path, ignored)) {
    AppendLine(path, std::string("HCCL_ALGO=") + algorithm);
  }
  AppendLine(path, line);
  if (++count_ == settings.traffic_limit) {
    WriteWholeFile(folder + "end_" + master + "_" + std::to_string(getpid()) + ".log", "");
  }
}

}  // namespace npu::distributed
