// Tokens on their way to the ranks of their experts.  No torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "collectives/collectives.h"
#include "kernels/moe_rows.h"
#include "mc2/moe_layout.h"

namespace npu::distributed {

/// The mask that says which slots of expert_ids count.
struct MoeMask {
  const uint8_t* values = nullptr;  ///< nullptr: all
  bool per_slot = false;            ///< tokens x slots instead of tokens
};

/// One call; all addresses are device memory.
struct MoeDispatch {
  MoePlacement placement;
  int64_t special_experts = 0;  ///< ids behind the placement's experts
  int64_t tokens = 0;
  int64_t slots = 0;
  int64_t most_tokens = 0;  ///< of any rank

  const std::byte* x = nullptr;
  const int32_t* expert_ids = nullptr;
  MoeMask mask;
  const float* expert_scales = nullptr;  ///< tokens x slots, or nullptr
  const int32_t* elastic = nullptr;      ///< elastic_info, or nullptr

  MoeRowFormat format{};
  int32_t quant_mode = 0;
  const float* smooth = nullptr;        ///< a row of format.columns for every shared and other expert, or nullptr
  const float* token_scales = nullptr;  ///< a scale for every token that travels with it, or nullptr

  int64_t bound = 0;  ///< rows of the outputs
  std::byte* expand_x = nullptr;
  std::byte* dynamic_scales = nullptr;  ///< bound x scale_stride bytes
  int64_t scale_stride = 0;
  int32_t* assist_info = nullptr;  ///< source, token, slot of every row; or nullptr
  int64_t assist_count = 0;
  int32_t* ordinals = nullptr;  ///< tokens x slots: number of the copy among those of its expert; or nullptr
  int64_t* expert_token_nums = nullptr;
  bool cumulative_nums = false;
  int32_t* ep_recv_counts = nullptr;
  int64_t ep_recv_length = 0;
  int32_t* tp_recv_counts = nullptr;  ///< one number, or nullptr
  float* expand_scales = nullptr;
  int64_t* performance = nullptr;  ///< microseconds waited for each rank are added; or nullptr

  std::byte* scratch = nullptr;
  size_t scratch_bytes() const;

  void Run(Collectives& group) const;

 private:
  class Call;
};

/// The ids of a rank's tokens with MoeChoices::kInactive where the mask says so.  `wrong` gets a text when an active id
/// is out of range.
std::vector<int32_t> MoeActiveChoices(const int32_t* ids, int64_t tokens, int64_t slots, const MoeMask& mask,
                                      int64_t experts, std::string* wrong);

}  // namespace npu::distributed
