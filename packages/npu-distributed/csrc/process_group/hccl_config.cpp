#include "process_group/hccl_config.h"

#include <c10/util/Exception.h>

#include <array>
#include <limits>
#include <string_view>

namespace npu::distributed {
namespace {

struct Key {
  std::string_view name;
  bool is_text;
  size_t longest = 0;  ///< of a text
};

constexpr std::array<Key, 13> kKeys{{
    {"hccl_buffer_size", false},
    {"group_name", true, 32},
    {"hccl_buffer_name", true, 128},
    {"qos_traffic_class", false},
    {"qos_service_level", false},
    {"hccl_sdma_qos", false},
    {"hccl_op_expansion_mode", false},
    {"hccl_world_rank_id", false},
    {"hccl_job_id", false},
    {"hccl_exec_timeout", false},
    {"hccl_algo", true, 1599},
    {"hccl_retry_enable", true, 50},
    {"hccl_retry_params", true, 128},
}};

bool IsInteger(const ConfigValue& value) {
  return std::holds_alternative<int64_t>(value) || std::holds_alternative<uint64_t>(value);
}

}  // namespace

void CorrectWithWarning(HcclConfig& config) {
  for (const Key& key : kKeys) {
    if (!key.is_text) continue;
    const auto found = config.find(std::string(key.name));
    if (found == config.end()) continue;
    auto* text = std::get_if<std::string>(&found->second);
    if (text == nullptr || text->size() <= key.longest) continue;
    TORCH_WARN("hccl_config: ", key.name, " has ", text->size(), " characters and is cut to ", key.longest);
    text->resize(key.longest);
  }
  const auto limit = config.find("hccl_exec_timeout");
  if (limit == config.end()) return;
  if (const auto* seconds = std::get_if<int64_t>(&limit->second); seconds != nullptr && *seconds < 0) {
    TORCH_WARN("hccl_config: hccl_exec_timeout should not be negative, but is ", *seconds, "; the default is used");
  }
}

void ValidateConfig(const HcclConfig& config) {
  for (const Key& key : kKeys) {
    const auto found = config.find(std::string(key.name));
    if (found == config.end()) continue;
    const bool fits = key.is_text ? std::holds_alternative<std::string>(found->second) : IsInteger(found->second);
    TORCH_CHECK(fits, "Value type of ", key.name, " should be ", key.is_text ? "string." : "int.");
  }
  const auto found = config.find("hccl_exec_timeout");
  if (found == config.end()) return;
  const auto* seconds = std::get_if<int64_t>(&found->second);
  TORCH_CHECK(seconds != nullptr && *seconds <= std::numeric_limits<int32_t>::max(),
              "Value type of hccl_exec_timeout exceeds INT32_MAX(2147483647).");
}

std::optional<std::chrono::seconds> ExecutionTimeout(const HcclConfig& config) {
  const auto found = config.find("hccl_exec_timeout");
  if (found == config.end()) return std::nullopt;
  const auto* seconds = std::get_if<int64_t>(&found->second);
  if (seconds == nullptr || *seconds < 0) return std::nullopt;
  return std::chrono::seconds(*seconds);
}

std::string BufferName(const HcclConfig& config) {
  const auto found = config.find("hccl_buffer_name");
  if (found == config.end()) return "";
  const auto* text = std::get_if<std::string>(&found->second);
  return text == nullptr ? "" : *text;
}

}  // namespace npu::distributed
