#include "mc2/moe_layout.h"

#include <algorithm>

namespace npu::distributed {

bool MoeChoices::IsActive(int64_t token) const {
  const std::span<const int32_t> chosen = Of(token);
  return std::any_of(chosen.begin(), chosen.end(), [](int32_t expert) { return expert != kInactive; });
}

std::span<const MoeCopy> MoeCopies::OfExpert(int64_t local) const {
  const auto begin = static_cast<size_t>(local == 0 ? 0 : ends[static_cast<size_t>(local) - 1]);
  return std::span(copies).subspan(begin, static_cast<size_t>(ends[static_cast<size_t>(local)]) - begin);
}

MoeCopies CopiesFor(const MoePlacement& placement, int source, const MoeChoices& choices, int target) {
  MoeCopies result;
  if (placement.IsShared(target)) {
    const int64_t expert = placement.SharedExpertOf(target);
    if (placement.SharedRank(source, expert) == target) {
      for (int64_t token = 0; token < choices.tokens; ++token) {
        if (!choices.IsActive(token)) continue;
        result.copies.push_back({static_cast<int32_t>(token), static_cast<int32_t>(choices.slots + expert)});
      }
    }
    result.ends = {static_cast<int64_t>(result.copies.size())};
    return result;
  }

  // A counting sort by expert, which keeps tokens and slots in order.
  const int64_t first = placement.FirstExpert(target), count = placement.LocalExperts(target);
  const int64_t slots = choices.tokens * choices.slots;
  const auto local_of = [&](int64_t slot) -> int64_t {
    const int64_t local = choices.experts[slot] - first;
    return local >= 0 && local < count ? local : -1;
  };
  std::vector<int64_t> next(static_cast<size_t>(count) + 1, 0);
  for (int64_t slot = 0; slot < slots; ++slot) {
    if (const int64_t local = local_of(slot); local >= 0) ++next[static_cast<size_t>(local) + 1];
  }
  for (size_t local = 1; local < next.size(); ++local) next[local] += next[local - 1];
  result.ends.assign(next.begin() + 1, next.end());
  result.copies.resize(static_cast<size_t>(next.back()));
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t local = local_of(slot);
    if (local < 0) continue;
    result.copies[static_cast<size_t>(next[static_cast<size_t>(local)]++)] = {
        static_cast<int32_t>(slot / choices.slots), static_cast<int32_t>(slot % choices.slots)};
  }
  return result;
}

std::vector<int32_t> TokensOf(const MoeCopies& copies, int64_t tokens) {
  std::vector<bool> wanted(static_cast<size_t>(tokens), false);
  for (const MoeCopy& copy : copies.copies) wanted[static_cast<size_t>(copy.token)] = true;
  std::vector<int32_t> result;
  for (int64_t token = 0; token < tokens; ++token) {
    if (wanted[static_cast<size_t>(token)]) result.push_back(static_cast<int32_t>(token));
  }
  return result;
}

}  // namespace npu::distributed
