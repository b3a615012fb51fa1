#pragma once
#include <functional>
#include <optional>
#include <string>

#include "export.h"

namespace npu {

// The one option registry: string to string, with callbacks that run at each change.
NPU_RUNTIME_API void set_option(const std::string& name, const std::string& value);
NPU_RUNTIME_API std::optional<std::string> get_option(const std::string& name);
// Pointer stays valid until the option changes; nullptr when unset (for the C table).
NPU_RUNTIME_API const char* get_option_cstr(const char* name);
NPU_RUNTIME_API void on_option_change(const std::string& name, std::function<void(const std::string&)> callback);

// Environment flag 0/1 with a default; any other value throws "<NAME> should be 0 or 1, but got ...".
NPU_RUNTIME_API bool env_flag(const char* name, bool fallback);

}  // namespace npu
