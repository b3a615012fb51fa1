#include "allocator_config.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <bit>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <vector>

#include "error.h"
#include "options.h"

namespace npu {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr const char* kVariable = "PYTORCH_NPU_ALLOC_CONF";

[[noreturn]] void reject(const std::string& text) {
  TORCH_CHECK(false, kVariable, ": ", text, error_suffix(Submodule::PTA, ErrorCode::VALUE));
}

[[noreturn]] void reject_value(const std::string& key, const std::string& expected, const std::string& value) {
  reject("the value of " + key + " must be " + expected + ", but got '" + value + "'");
}

std::size_t integer(const std::string& key, const std::string& value, std::size_t low, std::size_t high,
                    const std::string& expected) {
  std::size_t number = 0;
  const char* end = value.data() + value.size();
  const auto [stop, failure] = std::from_chars(value.data(), end, number);
  if (value.empty() || failure != std::errc() || stop != end || number < low || number > high)
    reject_value(key, expected, value);
  return number;
}

double real(const std::string& key, const std::string& value, bool open_interval) {
  const char* expected = open_interval ? "a number in (0, 1)" : "a number in [0, 1]";
  double number = -1;
  const char* end = value.data() + value.size();
  const auto [stop, failure] = std::from_chars(value.data(), end, number);
  const bool inside = open_interval ? number > 0 && number < 1 : number >= 0 && number <= 1;
  if (value.empty() || failure != std::errc() || stop != end || !inside) reject_value(key, expected, value);
  return number;
}

bool boolean(const std::string& key, const std::string& value) {
  if (value == "True" || value == "true") return true;
  if (value == "False" || value == "false") return false;
  reject_value(key, "True or False", value);
}

// Splits at `separator`, but not inside brackets.
std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : text) {
    depth += c == '[' ? 1 : c == ']' ? -1 : 0;
    if (c == separator && depth == 0) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

std::pair<std::string, std::string> key_and_value(const std::string& entry) {
  const std::size_t colon = entry.find(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == entry.size())
    reject("expected key:value,key:value, but got '" + entry + "'");
  return {entry.substr(0, colon), entry.substr(colon + 1)};
}

void parse_divisions(const std::string& key, const std::string& value, std::array<std::size_t, 16>& divisions) {
  const std::size_t top = std::size_t{1} << 30;
  const auto division = [&](const std::string& text) {
    const std::size_t number = integer(key, text, 0, top, "a power of two, or [size_mb:divisions,...,>:divisions]");
    if (number != 0 && !std::has_single_bit(number)) reject_value(key, "a power of two", text);
    return number;
  };
  if (value.front() != '[') {
    divisions.fill(division(value));
    return;
  }
  if (value.back() != ']') reject_value(key, "closed by ']'", value);
  std::size_t next = 0;  // first size class the list has not named yet
  for (const std::string& entry : split(value.substr(1, value.size() - 2), ',')) {
    const auto [size, count] = key_and_value(entry);
    if (size == ">") {
      for (; next < divisions.size(); ++next) divisions[next] = division(count);
      continue;
    }
    const std::size_t mib = integer(key, size, 1, kMiB, "a size in MiB (a power of two)");
    if (!std::has_single_bit(mib)) reject_value(key, "sizes that are powers of two", size);
    const std::size_t index = std::min<std::size_t>(std::bit_width(mib) - 1, divisions.size() - 1);
    if (next > index) reject_value(key, "sizes in ascending order", value);
    // The first size also speaks for everything below it.
    const std::size_t first = next == 0 ? 0 : index;
    for (std::size_t i = first; i <= index; ++i) divisions[i] = division(count);
    next = index + 1;
  }
}

using Setter = std::function<void(AllocatorConfig&, const std::string& key, const std::string& value)>;

Setter checked_boolean() {
  return [](AllocatorConfig&, const std::string& key, const std::string& value) { boolean(key, value); };
}

Setter checked_integer(std::size_t low, std::size_t high, const char* expected) {
  return [=](AllocatorConfig&, const std::string& key, const std::string& value) {
    integer(key, value, low, high, expected);
  };
}

const std::map<std::string, Setter>& setters() {
  static constexpr std::size_t kMost = std::size_t{1} << 40;  // MiB; keeps the product inside size_t
  static const std::map<std::string, Setter> table = {
      {"max_split_size_mb",
       [](AllocatorConfig& config, const std::string& key, const std::string& value) {
         config.max_split_size = integer(key, value, 21, kMost, "an integer greater than 20") * kMiB;
       }},
      {"max_non_split_rounding_mb",
       [](AllocatorConfig& config, const std::string& key, const std::string& value) {
         config.max_non_split_rounding = integer(key, value, 21, kMost, "an integer greater than 20") * kMiB;
       }},
      {"large_segment_size_mb",
       [](AllocatorConfig& config, const std::string& key, const std::string& value) {
         config.large_segment_size = integer(key, value, 11, kMost, "an integer greater than 10") * kMiB;
       }},
      {"garbage_collection_threshold",
       [](AllocatorConfig& config, const std::string& key, const std::string& value) {
         config.garbage_collection_threshold = real(key, value, true);
       }},
      {"per_process_memory_fraction",
       [](AllocatorConfig& config, const std::string& key, const std::string& value) {
         config.memory_fraction = real(key, value, false);
       }},
      {"expandable_segments", [](AllocatorConfig& config, const std::string& key,
                                 const std::string& value) { config.expandable_segments = boolean(key, value); }},
      {"multi_stream_lazy_reclaim",
       [](AllocatorConfig& config, const std::string& key, const std::string& value) {
         config.multi_stream_lazy_reclaim = boolean(key, value);
       }},
      {"throw_on_npumalloc_oom", [](AllocatorConfig& config, const std::string& key,
                                    const std::string& value) { config.throw_on_oom = boolean(key, value); }},
      {"roundup_power2_divisions",
       [](AllocatorConfig& config, const std::string& key, const std::string& value) {
         parse_divisions(key, value, config.power2_divisions);
       }},
      {"page_size",
       [](AllocatorConfig&, const std::string& key, const std::string& value) {
         if (value != "1g") reject_value(key, "1g", value);
       }},
      {"base_addr_aligned_kb", checked_integer(0, 16, "[0~16], an integer")},
      {"segment_size_mb", checked_integer(20, 512, "an integer in [20, 512]")},
      {"pinned_max_round_threshold_mb", checked_integer(1, kMost, "a positive integer")},
      {"pinned_max_cached_size_mb", checked_integer(1, kMost, "a positive integer")},
      {"pinned_reserve_segment_size_mb", checked_integer(0, kMost, "an integer")},
      {"release_lock_on_npumalloc", checked_boolean()},
      {"pinned_use_background_threads", checked_boolean()},
      {"pin_memory_expandable_segments", checked_boolean()},
      {"pinned_mem_register", checked_boolean()},
  };
  return table;
}

}  // namespace

std::size_t AllocatorConfig::round_request(std::size_t bytes) const {
  const std::size_t padded = bytes + kPad;
  if (padded < kMinBlock) return kMinBlock;
  const std::size_t mib = padded / kMiB;
  const std::size_t index = mib == 0 ? 0 : std::min<std::size_t>(std::bit_width(mib) - 1, power2_divisions.size() - 1);
  const std::size_t divisions = power2_divisions[index];
  std::size_t step = kMinBlock;
  if (divisions > 1 && padded > kMinBlock * divisions) step = std::bit_floor(padded) / divisions;
  return (padded + step - 1) / step * step;
}

std::size_t AllocatorConfig::segment_size(std::size_t block) const {
  if (block <= kSmallLimit) return kSmallSegment;
  if (block < kSharedLargeLimit) return large_segment_size;
  return (block + kLargeGrain - 1) / kLargeGrain * kLargeGrain;
}

AllocatorConfig AllocatorConfig::parse(const std::string& text) {
  std::string compact;
  for (const char c : text)
    if (std::isspace(static_cast<unsigned char>(c)) == 0) compact += c;
  AllocatorConfig config;
  bool splits_or_collects = false;
  for (const std::string& entry : split(compact, ',')) {
    if (entry.empty()) continue;
    const auto [key, value] = key_and_value(entry);
    const auto setter = setters().find(key);
    if (setter == setters().end()) {
      std::string known;
      for (const auto& [name, unused] : setters()) known += (known.empty() ? "" : ", ") + name;
      reject("Unrecognized key '" + key + "'; expected one of " + known);
    }
    setter->second(config, key, value);
    splits_or_collects |= key == "max_split_size_mb" || key == "garbage_collection_threshold";
  }
  if (config.expandable_segments && splits_or_collects)
    reject(
        "expandable_segments:True cannot be combined with max_split_size_mb or garbage_collection_threshold; "
        "remove one of them");
  return config;
}

AllocatorConfig AllocatorConfig::from_environment() {
  const char* own = std::getenv(kVariable);
  const char* alias = std::getenv("PYTORCH_ALLOC_CONF");
  if (own != nullptr && alias != nullptr)
    reject("PYTORCH_ALLOC_CONF is its alias, so only one of the two may be set; unset one of them");
  const char* text = own != nullptr ? own : alias;
  AllocatorConfig config = parse(text == nullptr ? "" : text);
  config.caching = !env_flag("PYTORCH_NO_NPU_MEMORY_CACHING", false);
  return config;
}

}  // namespace npu
