// A tree of plain values and its two encodings, JSON and pickle: written without Python, because dumps are made by
// threads that must not wait for the interpreter lock.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace npu::distributed {

class TraceValue {
 public:
  using List = std::vector<TraceValue>;
  using Dict = std::vector<std::pair<std::string, TraceValue>>;
  struct Tuple {
    List items;
  };

  TraceValue() = default;  ///< None, null
  TraceValue(bool value) : value_(value) {}
  TraceValue(int64_t value) : value_(value) {}
  TraceValue(double value) : value_(value) {}
  TraceValue(std::string value) : value_(std::move(value)) {}
  TraceValue(const char* value) : value_(std::string(value)) {}
  TraceValue(List value) : value_(std::move(value)) {}
  TraceValue(Tuple value) : value_(std::move(value)) {}
  TraceValue(Dict value) : value_(std::move(value)) {}

  /// Appends to a dictionary.
  void Add(std::string key, TraceValue item) { std::get<Dict>(value_).emplace_back(std::move(key), std::move(item)); }

  std::string Json() const;
  /// Protocol 2; pickle.loads() needs no module for it.
  std::string Pickle() const;

 private:
  void AppendJson(std::string& out) const;
  void AppendPickle(std::string& out) const;

  std::variant<std::monostate, bool, int64_t, double, std::string, List, Tuple, Dict> value_;
};

}  // namespace npu::distributed
