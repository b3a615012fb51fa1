#include "options.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <string_view>
#include <vector>

#include "error.h"

namespace npu {
namespace {

struct Registry {
  std::mutex mutex;  // guards the three containers
  // Every value ever set, so that a pointer handed out stays valid.  Options take few distinct values.
  std::set<std::string> values;
  std::map<std::string, const std::string*, std::less<>> options;
  std::map<std::string, std::vector<std::function<void(const std::string&)>>, std::less<>> callbacks;
  // Serialises changes with their callbacks; recursive because a callback may set another option.
  std::recursive_mutex changing;
};

Registry& registry() {
  static Registry* instance = new Registry;  // outlives static destructors, which may still read options
  return *instance;
}

}  // namespace

void set_option(const std::string& name, const std::string& value) {
  Registry& state = registry();
  std::lock_guard change(state.changing);
  std::vector<std::function<void(const std::string&)>> callbacks;
  {
    std::lock_guard lock(state.mutex);
    state.options[name] = &*state.values.insert(value).first;
    if (const auto found = state.callbacks.find(name); found != state.callbacks.end()) callbacks = found->second;
  }
  for (const auto& callback : callbacks) callback(value);
}

std::optional<std::string> get_option(const std::string& name) {
  const char* value = get_option_cstr(name.c_str());
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

const char* get_option_cstr(const char* name) {
  Registry& state = registry();
  std::lock_guard lock(state.mutex);
  const auto found = state.options.find(std::string_view(name));
  return found == state.options.end() ? nullptr : found->second->c_str();
}

void on_option_change(const std::string& name, std::function<void(const std::string&)> callback) {
  Registry& state = registry();
  std::lock_guard lock(state.mutex);
  state.callbacks[name].push_back(std::move(callback));
}

bool env_flag(const char* name, bool fallback) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return fallback;
  const std::string_view value(text);
  TORCH_CHECK(value == "0" || value == "1", name, " should be 0 or 1, but got '", value, "'",
              error_suffix(Submodule::PTA, ErrorCode::VALUE));
  return value == "1";
}

}  // namespace npu
