// Bytes between ranks on different machines.  Knows nothing of tensors or collectives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>

#include "npu/driver.h"

namespace npu::distributed {

/// Messages of different channels between two ranks never match each other.
enum class Channel : uint32_t {
  kRecords,         ///< what the ranks of a host announce
  kData,            ///< payload of collectives
  kResults,         ///< results of reductions on their way back
  kMessageHeaders,  ///< point-to-point
  kMessages,
};

/// Bytes for `peer`, or room for bytes from it.  What arrives may be shorter than the room.
struct Parcel {
  int peer = 0;
  std::byte* data = nullptr;
  size_t bytes = 0;
};

/// Sends and receives under way.  Destroying it before Wait has returned abandons them, and with them the link.
class LinkOperation {
 public:
  virtual ~LinkOperation() = default;
  /// Returns when every byte has come and the memory of every send may be reused.  Throws LinkError.
  virtual void Wait() = 0;
  /// The same without the time-out of the link.
  virtual void WaitForEver() = 0;
};

class LinkError : public std::runtime_error {
 public:
  enum class Cause {
    kLost,     ///< the connection to `peer` ended
    kTimeout,  ///< `peer` did not answer in time
    kBroken,   ///< this rank has broken the link
  };
  LinkError(Cause cause, int peer, const std::string& detail)
      : std::runtime_error(detail), cause_(cause), peer_(peer) {}

  Cause cause() const { return cause_; }
  int peer() const { return peer_; }

  /// Why the peer broke the link, as it said itself; empty when it said nothing.
  std::string reason;
  npu_status reason_status = NPU_ERROR_SYSTEM;

 private:
  Cause cause_;
  int peer_;
};

/// Connections of one rank to the ranks of its group.  Thread-safe.  Parcels of one channel between two ranks arrive in
/// the order in which they were started.
class HostLink {
 public:
  virtual ~HostLink() = default;

  /// Throws LinkError when the link is broken.
  virtual std::unique_ptr<LinkOperation> Start(Channel channel, std::span<const Parcel> sends,
                                               std::span<const Parcel> receives) = 0;

  /// Tells every peer why, as far as that is possible at once, and ends all connections: whoever waits for one of them,
  /// here or there, wakes with a LinkError.  Idempotent.
  virtual void Break(npu_status status, const char* reason) noexcept = 0;
};

/// Makes the link of a group.  Collective; throws CommError.  `group` is the same number on all ranks and another one
/// for every other group.
using LinkFactory = std::function<std::unique_ptr<HostLink>(uint64_t group)>;

}  // namespace npu::distributed
