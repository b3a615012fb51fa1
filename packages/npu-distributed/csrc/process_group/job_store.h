// The job's key-value store as diagnosis uses it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace npu::distributed {

/// A connection of its own, so that a thread that waits for a key elsewhere is no obstacle.  Not for concurrent use.
/// Never throws: a store that cannot be reached any more has nothing to say.
class JobStore {
 public:
  /// `shared_by_job`: the store under the group's own prefix, which all groups of the job see.
  JobStore(const c10::intrusive_ptr<c10d::Store>& group_store, bool shared_by_job);

  void Set(const std::string& key, const std::string& value) noexcept;
  /// The value, or nothing when there is no such key.
  std::optional<std::string> Get(const std::string& key) noexcept;
  /// The new value of the counter, or nothing.
  std::optional<int64_t> Add(const std::string& key, int64_t amount) noexcept;

 private:
  template <class Body>
  void Try(Body&& body) noexcept;

  c10::intrusive_ptr<c10d::Store> store_;
};

}  // namespace npu::distributed
