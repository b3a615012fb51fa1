#include "mc2/fail_together.h"

#include "transport/comm_error.h"

namespace npu::distributed {

void FailTogether(Collectives& group, const std::string& text) {
  group.Abort(text.c_str());
  throw CommError(NPU_ERROR_TASK_FAILED, text);
}

}  // namespace npu::distributed
