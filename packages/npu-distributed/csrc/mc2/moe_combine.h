// Rows on their way back from the experts, and the sum of what comes for each token.  No torch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "collectives/collectives.h"
#include "mc2/moe_dispatch.h"

namespace npu::distributed {

/// Residual and norm behind the sum; all of the output's type.
struct MoeCombineNorm {
  bool is_wanted = false;
  const std::byte* residual = nullptr;
  const std::byte* gamma = nullptr;
  double epsilon = 0;
  std::byte* y = nullptr;
  float* rstd = nullptr;
};

/// One call; all addresses are device memory.
struct MoeCombine {
  MoePlacement placement;
  int64_t zero_experts = 0, copy_experts = 0, const_experts = 0;  ///< ids behind the placement's experts, in this order
  int64_t tokens = 0;
  int64_t slots = 0;
  int64_t most_tokens = 0;  ///< of any rank
  int64_t columns = 0;
  npu_dtype in = NPU_BFLOAT16;   ///< of expand_x
  npu_dtype out = NPU_BFLOAT16;  ///< of everything else that has columns
  bool int8_transit = false;     ///< comm_quant_mode 2

  const std::byte* expand_x = nullptr;
  int64_t expand_rows = 0;
  const int32_t* expert_ids = nullptr;
  MoeMask mask;
  const float* expert_scales = nullptr;
  const int32_t* ep_send_counts = nullptr;
  /// True: assist_info says source, token and slot of every row of expand_x.  False: ordinals has the number of each
  /// slot's copy among those that this rank has sent to its expert.
  bool by_rows = true;
  const int32_t* assist_info = nullptr;
  int64_t assist_rows = 0;
  const int32_t* ordinals = nullptr;
  const int32_t* elastic = nullptr;

  const std::byte* shared_expert_x = nullptr;
  const std::byte* ori_x = nullptr;
  const std::byte* alpha1 = nullptr;
  const std::byte* alpha2 = nullptr;
  const std::byte* const_v = nullptr;

  std::byte* output = nullptr;
  MoeCombineNorm norm;
  int64_t* performance = nullptr;  ///< microseconds waited for each rank are added; or nullptr

  std::byte* scratch = nullptr;
  size_t scratch_bytes() const;

  void Run(Collectives& group) const;

 private:
  class Call;
};

}  // namespace npu::distributed
