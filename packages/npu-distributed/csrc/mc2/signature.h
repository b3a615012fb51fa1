// Whether all ranks have called the same operator with results that fit together.  No torch.
#pragma once

#include <cstddef>
#include <string>

#include "collectives/collectives.h"

namespace npu::distributed {

/// Bytes of scratch memory, on the device, for RequireSameSignature among `world` ranks.
size_t SignatureScratch(int world);

/// The first thing that ranks do together in a call of a fused operator.  `signature` names the operator and what has
/// to be the same on all ranks.  Throws CommError with EI0005 on every rank when the signatures differ.
void RequireSameSignature(Collectives& group, const std::string& signature, std::byte* scratch);

/// Fails the group on every rank.
[[noreturn]] void FailTogether(Collectives& group, const std::string& text);

}  // namespace npu::distributed
