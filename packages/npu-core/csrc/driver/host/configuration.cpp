#include "configuration.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "error.h"

namespace npu::host {
namespace {

struct Soc {
  const char* name;
  int version;
};

constexpr Soc kSocs[] = {
    {"Ascend910PremiumA", 100}, {"Ascend910ProA", 101},  {"Ascend910A", 102},     {"Ascend910ProB", 103},
    {"Ascend910B", 104},        {"Ascend310P1", 200},    {"Ascend310P2", 201},    {"Ascend310P3", 202},
    {"Ascend310P4", 203},       {"Ascend310P5", 204},    {"Ascend310P7", 205},    {"Ascend910B1", 220},
    {"Ascend910B2", 221},       {"Ascend910B2C", 222},   {"Ascend910B3", 223},    {"Ascend910B4", 224},
    {"Ascend910B4-1", 225},     {"Ascend310B1", 240},    {"Ascend310B2", 241},    {"Ascend310B3", 242},
    {"Ascend310B4", 243},       {"Ascend910_9391", 250}, {"Ascend910_9392", 251}, {"Ascend910_9381", 252},
    {"Ascend910_9382", 253},    {"Ascend910_9372", 254}, {"Ascend910_9362", 255}, {"Ascend910_9363", 256},
};

// An unset or empty variable means the default.
const char* variable(const char* name) {
  const char* value = getenv(name);
  return value != nullptr && *value != '\0' ? value : nullptr;
}

// Digits only: strtoull alone would take signs and blanks.
bool parse_number(const char* text, uint64_t* number, const char** rest) {
  if (*text < '0' || *text > '9') return false;
  char* end = nullptr;
  errno = 0;
  *number = strtoull(text, &end, 10);
  *rest = end;
  return errno == 0;
}

npu_status read_number(const char* name, uint64_t low, uint64_t high, uint64_t* result) {
  const char* value = variable(name);
  if (value == nullptr) return NPU_OK;
  uint64_t number = 0;
  const char* rest = "";
  if (!parse_number(value, &number, &rest) || *rest != '\0' || number < low || number > high) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "%s=\"%s\": expected a whole number from %llu to %llu", name, value,
                static_cast<unsigned long long>(low), static_cast<unsigned long long>(high));
  }
  *result = number;
  return NPU_OK;
}

npu_status read_size(const char* name, uint64_t low, uint64_t high, size_t* result) {
  const char* value = variable(name);
  if (value == nullptr) return NPU_OK;
  uint64_t number = 0;
  const char* rest = "";
  int shift = -1;
  if (parse_number(value, &number, &rest)) {
    while (*rest == ' ') ++rest;
    constexpr struct {
      const char* text;
      int shift;
    } kUnits[] = {{"", 0}, {"B", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
    for (const auto& unit : kUnits) {
      if (strcmp(rest, unit.text) == 0) shift = unit.shift;
    }
  }
  if (shift < 0 || number > (high >> shift) || (number << shift) < low) {
    return fail(NPU_ERROR_INVALID_ARGUMENT,
                "%s=\"%s\": expected bytes or a whole number with KiB, MiB, GiB or TiB (\"512MiB\"), from %llu to %llu "
                "bytes",
                name, value, static_cast<unsigned long long>(low), static_cast<unsigned long long>(high));
  }
  *result = number << shift;
  return NPU_OK;
}

npu_status read_soc(Configuration* configuration) {
  const char* value = variable("NPU_HOST_SOC");
  if (value == nullptr) return NPU_OK;
  std::string names;
  for (const Soc& soc : kSocs) {
    if (strcmp(value, soc.name) == 0) {
      configuration->soc = soc.name;
      configuration->soc_version = soc.version;
      return NPU_OK;
    }
    names += soc.name;
    names += ", ";
  }
  // The 950 family shares one number, whatever the suffix.
  std::string_view text(value);
  if (text.starts_with("Ascend950") && text.size() < sizeof(npu_device_properties::name)) {
    configuration->soc = value;
    configuration->soc_version = 260;
    return NPU_OK;
  }
  return fail(NPU_ERROR_INVALID_ARGUMENT, "NPU_HOST_SOC=\"%s\": expected one of %sAscend950*", value, names.c_str());
}

}  // namespace

npu_status read_device_count(int* count) {
  uint64_t number = 1;
  // torchrun starts one process per device and says how many there are; a value that is not a positive number there
  // is not ours to complain about.
  if (const char* world = variable("LOCAL_WORLD_SIZE")) {
    uint64_t size = 0;
    const char* rest = "";
    if (parse_number(world, &size, &rest) && *rest == '\0' && size > 0) number = size;
  }
  if (number > kMaxDevices && variable("NPU_HOST_DEVICE_COUNT") == nullptr) {
    return fail(NPU_ERROR_INVALID_ARGUMENT,
                "LOCAL_WORLD_SIZE=\"%s\" asks for more devices than the host driver has (%d): set "
                "NPU_HOST_DEVICE_COUNT to a number from 1 to %d",
                variable("LOCAL_WORLD_SIZE"), kMaxDevices, kMaxDevices);
  }
  npu_status status = read_number("NPU_HOST_DEVICE_COUNT", 1, kMaxDevices, &number);
  if (status == NPU_OK) *count = static_cast<int>(number);
  return status;
}

npu_status read_configuration(Configuration* configuration) {
  Configuration read;
  npu_status status = read_device_count(&read.device_count);
  if (status == NPU_OK) {
    status = read_size("NPU_HOST_MEMORY", kMemoryGranularity, uint64_t{1} << 40, &read.memory_bytes);
    read.memory_bytes -= read.memory_bytes % kMemoryGranularity;
  }
  if (status == NPU_OK) status = read_soc(&read);
  if (status == NPU_OK) {
    status = read_size("NPU_HOST_COPY_THRESHOLD", 0, uint64_t{1} << 62, &read.copy_threshold);
  }
  if (status == NPU_OK) {
    uint64_t spin_us = static_cast<uint64_t>(read.spin_ns) / 1000;
    status = read_number("NPU_HOST_SPIN_US", 0, 1'000'000, &spin_us);
    read.spin_ns = static_cast<int64_t>(spin_us) * 1000;
  }
  if (status == NPU_OK) *configuration = read;
  return status;
}

}  // namespace npu::host
