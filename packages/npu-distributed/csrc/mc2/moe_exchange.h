// What dispatch and combine share: ranks tell each other what they bring, and fail together.  No torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "collectives/collectives.h"

namespace npu::distributed {

/// Bytes of rows that one round of an exchange may hold in each direction; a call of more goes in rounds, which bounds
/// the scratch memory and keeps the rows in the caches on their way.
inline constexpr int64_t kMoeRoundBytes = int64_t{32} << 20;

/// What a rank says at the beginning of a call.
struct MoeAnnouncement {
  /// Arguments that every rank has to pass alike, with their names.  The same names in the same order on every rank
  /// that calls the same operator.
  std::vector<std::pair<const char*, int64_t>> agreed;
  int64_t tokens = 0;   ///< of this rank
  int64_t longest = 0;  ///< of this rank: items for one peer
  /// Why this rank cannot take part; fails the call on every rank.
  std::string failure;
  std::vector<std::byte> body;
};

/// What a peer has said.
struct MoePeer {
  int64_t tokens = 0;
  int64_t longest = 0;
  std::span<const std::byte> body;  ///< in the scratch memory
};

/// Bytes of scratch memory for Announce among `world` ranks with bodies of up to `longest_body` bytes.
size_t MoeAnnounceScratch(int world, size_t longest_body);

/// Tells everybody `mine` and returns what each rank has said.  Throws CommError on every rank when they disagree on an
/// argument or one of them reports a failure.
std::vector<MoePeer> MoeAnnounce(Collectives& group, const MoeAnnouncement& mine, size_t longest_body,
                                 std::byte* scratch);

}  // namespace npu::distributed
