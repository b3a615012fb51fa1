// The ranks of a group as seen by one of them: who they are, whether they live, and the failure they share.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "transport/control_page.h"
#include "transport/process_identity.h"

namespace npu::distributed {

/// Every function may be called from any thread.
class Peers {
 public:
  /// `limit` bounds each wait for peers (zero: for ever).  `page` must outlive this.
  Peers(ControlPage& page, std::vector<ProcessIdentity> ranks, int rank, std::chrono::milliseconds limit);

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(ranks_.size()); }
  const std::vector<ProcessIdentity>& ranks() const { return ranks_; }
  std::chrono::milliseconds limit() const { return limit_; }

  /// Number of `peer` in the group, which may have ranks on other machines as well.
  int NumberOf(int peer) const { return ranks_[static_cast<size_t>(peer)].rank; }
  /// Whether `peer` has said that it will not come again.
  bool HasLeft(int peer) const;
  /// "rank 3 (process 4711)".
  std::string NameOf(int peer) const;
  /// Why `peer` will not come again: "rank 3 (process 4711) ended"; empty while it may.
  std::string WhyGone(int peer) const;
  /// The same after its memory could not be reached: a process that is ending loses its files a moment before it counts
  /// as ended, so this gives it a second.
  std::string WhyUnreachable(int peer) const;
  /// What `peer` announced last: "its last collective was number 5, barrier".
  std::string LastCallOf(int peer) const;

  /// Throws the group's failure when there is one.
  void ThrowIfFailed() const;
  /// Makes the group fail on every rank, then throws.
  [[noreturn]] void Fail(npu_status status, const std::string& text) const;

 private:
  ControlPage& page_;
  const std::vector<ProcessIdentity> ranks_;
  const int rank_;
  const std::chrono::milliseconds limit_;
};

}  // namespace npu::distributed
