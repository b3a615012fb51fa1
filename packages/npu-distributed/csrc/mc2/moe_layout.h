// Which copy of which token goes where: the contract between dispatch, the experts and combine.  No torch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace npu::distributed {

/// Where experts live: ranks 0 ... shared_ranks - 1 hold shared experts, the others experts / (their number) each.
struct MoePlacement {
  int world = 1;
  int64_t experts = 0;         ///< not counting shared ones
  int64_t shared_experts = 0;  ///< 0 when shared_ranks is 0
  int shared_ranks = 0;

  bool IsShared(int rank) const { return rank < shared_ranks; }
  /// Ranks that hold the same shared expert; source s uses number s % replicas.
  int Replicas() const { return static_cast<int>(shared_ranks / shared_experts); }
  int64_t SharedExpertOf(int rank) const { return rank / Replicas(); }
  int SharedRank(int source, int64_t expert) const {
    return source % Replicas() + static_cast<int>(expert) * Replicas();
  }

  int64_t ExpertsPerRank() const { return experts / (world - shared_ranks); }
  int64_t LocalExperts(int rank) const { return IsShared(rank) ? 1 : ExpertsPerRank(); }
  int64_t FirstExpert(int rank) const { return (rank - shared_ranks) * ExpertsPerRank(); }
  int RankOf(int64_t expert) const { return shared_ranks + static_cast<int>(expert / ExpertsPerRank()); }
};

/// The experts that the tokens of one rank have chosen.
struct MoeChoices {
  /// Stands for a slot whose mask is false.
  static constexpr int32_t kInactive = INT32_MIN;

  int64_t tokens = 0;
  int64_t slots = 0;
  const int32_t* experts = nullptr;  ///< tokens x slots; from `experts` of the placement on: evaluated by combine

  std::span<const int32_t> Of(int64_t token) const { return {experts + token * slots, static_cast<size_t>(slots)}; }
  /// Whether any slot of the token is active; only then shared experts get it.
  bool IsActive(int64_t token) const;
};

/// A token on its way to one rank.
struct MoeCopy {
  int32_t token;
  int32_t slot;  ///< of a shared expert: slots + its number
};

/// The copies that `source` sends to `target`, in the order in which `target` keeps them: by local expert, token, slot.
struct MoeCopies {
  std::vector<MoeCopy> copies;
  std::vector<int64_t> ends;  ///< per local expert, into `copies`

  std::span<const MoeCopy> OfExpert(int64_t local) const;
};
MoeCopies CopiesFor(const MoePlacement& placement, int source, const MoeChoices& choices, int target);

/// The tokens among `copies`, each once, ascending.
std::vector<int32_t> TokensOf(const MoeCopies& copies, int64_t tokens);

}  // namespace npu::distributed
