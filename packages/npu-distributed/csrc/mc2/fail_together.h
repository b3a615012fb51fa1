// Errors of an operator that only some ranks can see.  No torch.
#pragma once

#include <string>

#include "collectives/collectives.h"

namespace npu::distributed {

/// Fails the group on every rank with `text`.
[[noreturn]] void FailTogether(Collectives& group, const std::string& text);

}  // namespace npu::distributed
