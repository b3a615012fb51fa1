// ProcessGroupHCCL.Options.hccl_config: what its keys take.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <variant>

namespace npu::distributed {

/// A value of a type that no key takes; it is refused when the communicator is made.
struct ForeignValue {
  std::string type;
};
using ConfigValue = std::variant<int64_t, uint64_t, std::string, ForeignValue>;
using HcclConfig = std::unordered_map<std::string, ConfigValue>;

/// Cuts texts that are too long, and warns about that and about values that will not be used.
void CorrectWithWarning(HcclConfig& config);
/// Throws c10::Error when the value of a known key has the wrong type or range.  Unknown keys are ignored.
void ValidateConfig(const HcclConfig& config);

/// hccl_exec_timeout; nothing when it is absent or negative.
std::optional<std::chrono::seconds> ExecutionTimeout(const HcclConfig& config);
/// hccl_buffer_name; "" when absent or not a text.
std::string BufferName(const HcclConfig& config);

}  // namespace npu::distributed
