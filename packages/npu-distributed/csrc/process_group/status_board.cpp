#include "process_group/status_board.h"

#include <unistd.h>

#include <cstdlib>

#include "process_group/file_output.h"
#include "process_group/per_process.h"
#include "process_group/trace_value.h"

namespace npu::distributed {

StatusBoard& StatusBoard::Instance() {
  static PerProcess<StatusBoard> board;
  return board.Get();
}

void StatusBoard::NoteCall(const GroupIdentity& group, uint64_t sequence, const std::string& op,
                           const std::string& ranks, std::shared_ptr<const CallRecord> record) {
  const std::lock_guard lock(mutex_);
  calls_[group.number] = {group.id, sequence, op, ranks, std::move(record)};
}

void StatusBoard::Write(const DiagnosisSettings& settings, const GroupIdentity& group, int device,
                        const std::string& failure, bool is_end) noexcept try {
  const std::lock_guard lock(mutex_);
  const int64_t now = WallClock() / 1'000'000;
  if (start_milliseconds_ == 0) start_milliseconds_ = now;
  TraceValue::List last;
  for (const auto& [number, call] : calls_) {
    last.emplace_back(TraceValue::Dict{{"seq", static_cast<int64_t>(call.sequence)},
                                       {"op_type", call.op},
                                       {"pg_id", call.group},
                                       {"comm_ids", call.ranks},
                                       {"status", call.record->state() == CallRecord::State::kDone ? "end" : "start"}});
  }
  const TraceValue content(TraceValue::Dict{{"last_comm_op", std::move(last)},
                                            {"is_master", group.global_rank() == 0},
                                            {"exception_message", failure},
                                            {"global_pg_end_time", is_end ? now : start_milliseconds_}});
  const char* master = std::getenv("MASTER_ADDR");
  const std::string name = "torch_hccl_status-" + std::to_string(group.global_rank()) + "_" +
                           (master != nullptr ? master : "127.0.0.1") + "_" + std::to_string(device) + "_" +
                           std::to_string(group.size) + "_" + std::to_string(getpid()) + "_" +
                           std::to_string(start_milliseconds_) + ".log";
  WriteWholeFile(settings.status_folder + "/" + name, content.Json());
} catch (const std::exception&) {
  // A status file never stops a training.
}

void StatusBoard::Clear() {
  const std::lock_guard lock(mutex_);
  calls_.clear();
}

}  // namespace npu::distributed
