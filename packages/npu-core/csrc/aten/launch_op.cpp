#include "launch_op.h"

namespace npu::aten::detail {

void submit_to(Stream* stream, const TaskWriter& writer, const char* op, npu_task_fn run, npu_task_kind kind) {
  npu_task task{};
  task.run = run;
  task.name = op;
  task.payload = writer.data();
  task.payload_size = static_cast<std::uint32_t>(writer.size());
  task.kind = static_cast<std::uint16_t>(kind);
  launch(stream, task);
}

}  // namespace npu::aten::detail
