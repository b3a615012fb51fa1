#include "process_group/group_diagnosis.h"

#include "process_group/debug_dump.h"
#include "process_group/flight_recorder.h"
#include "process_group/status_board.h"
#include "process_group/traffic_record.h"

namespace npu::distributed {
namespace {

/// Time other ranks get to notice the dump signal, beyond one of their rounds.
constexpr std::chrono::milliseconds kDumpMargin{2000};

}  // namespace

GroupDiagnosis::GroupDiagnosis(GroupIdentity group, const Environment& environment,
                               const c10::intrusive_ptr<c10d::Store>& store)
    : group_(std::make_shared<const GroupIdentity>(std::move(group))), settings_(environment.diagnosis) {
  FlightRecorder::Instance().Resize(settings_.trace_entries);
  if (settings_.trace_entries != 0) FlightRecorder::Instance().AddGroup(group_, progress_);
  if (environment.error_handling == ErrorHandling::kNone) return;  // nobody watches, so nobody reports
  if (settings_.dump_on_timeout) signal_ = std::make_unique<DumpSignal>(store);
  if (settings_.desync) report_ = std::make_unique<ProgressReport>(group_, progress_, store);
  if (settings_.monitoring) {
    heart_->Beat();
    HeartbeatMonitor::Instance().Add(heart_, settings_, group_->global_rank(), store);
  }
}

GroupDiagnosis::~GroupDiagnosis() { HeartbeatMonitor::Instance().Remove(heart_); }

std::shared_ptr<torch::CapturedTraceback> GroupDiagnosis::CaptureFrames() const {
  return FlightRecorder::Instance().enabled() ? FlightRecorder::CaptureFrames() : nullptr;
}

void GroupDiagnosis::CommunicatorMade(const std::string& name, const std::string& description) {
  {
    const std::lock_guard lock(mutex_);
    communicator_ = name;
  }
  FlightRecorder& recorder = FlightRecorder::Instance();
  if (!recorder.enabled()) return;
  recorder.SetDescription(group_->number, description);
  recorder.SetCommunicatorState(group_->number, name, "healthy");
}

void GroupDiagnosis::Announce(const AnnouncedCall& call) {
  device_.store(call.device, std::memory_order_relaxed);
  const bool is_collective = call.peers.empty();
  if (is_collective && !call.is_block)
    progress_->enqueued.store(static_cast<int64_t>(call.sequence), std::memory_order_relaxed);
  if (!settings_.traffic_folder.empty() && !call.is_block) {
    const std::vector<at::Tensor>& moved = call.inputs.empty() ? call.outputs : call.inputs;
    const size_t bytes = moved.empty() ? 0 : moved.front().storage().nbytes();
    const std::lock_guard lock(mutex_);
    TrafficRecord::Instance().Add(settings_, communicator_.empty() ? group_->name : communicator_, call.op, bytes);
  }
  if (settings_.status_files && !call.in_batch) {
    std::string ranks;
    for (const int peer : call.peers) ranks += std::to_string(peer) + " ";
    const uint64_t sequence = call.peers.empty() ? call.sequence : call.p2p_sequence;
    StatusBoard::Instance().NoteCall(*group_, sequence, call.op, ranks.empty() ? "all" : ranks, call.record);
  }
  FlightRecorder& recorder = FlightRecorder::Instance();
  if (!recorder.enabled()) return;
  RecordedCall recorded;
  recorded.group = group_;
  recorded.collective_sequence = call.sequence;
  recorded.p2p_sequence = call.p2p_sequence;
  {
    const std::lock_guard lock(mutex_);
    recorded.op_id = call.is_block ? op_id_ : ++op_id_;  // a block is no operation of its own
  }
  recorded.profiling_name = call.profiling_name;
  recorded.SetInputs(call.inputs);
  recorded.SetOutputs(call.outputs);
  recorded.timeout = call.timeout;
  recorded.is_p2p = !call.peers.empty();
  if (!call.in_batch) recorded.record = call.record;
  recorded.frames = call.frames;
  recorder.Record(std::move(recorded));
}

void GroupDiagnosis::EnableTiming() { FlightRecorder::Instance().SetTimed(group_->number); }

void GroupDiagnosis::End() {
  if (ended_.exchange(true)) return;
  HeartbeatMonitor::Instance().Remove(heart_);
  if (!is_world()) return;
  if (device_.load() >= 0) WriteStatus("", /*is_end=*/true);
  StatusBoard::Instance().Clear();
}

bool GroupDiagnosis::wants_ticks() const { return (settings_.status_files && is_world()) || report_ != nullptr; }

void GroupDiagnosis::Tick(const std::string& oldest_pending_op) noexcept {
  if (report_) report_->Publish(oldest_pending_op);
  const auto now = std::chrono::steady_clock::now();
  if (!is_world() || now < next_status_ || device_.load() < 0) return;
  next_status_ = now + settings_.status_interval;
  WriteStatus("", /*is_end=*/false);
}

void GroupDiagnosis::WriteStatus(const std::string& failure, bool is_end) noexcept {
  if (!settings_.status_files) return;
  std::string text;
  {
    const std::lock_guard lock(mutex_);
    if (failure_.empty()) failure_ = failure;
    text = failure_;
  }
  StatusBoard::Instance().Write(settings_, *group_, device_.load(), text, is_end);
}

void GroupDiagnosis::Retire(const CallRecord* record) {
  FlightRecorder& recorder = FlightRecorder::Instance();
  if (recorder.enabled()) recorder.Retire(record);
}

std::string GroupDiagnosis::DescribeLag(int64_t sequence, const std::string& op) noexcept {
  return report_ ? report_->Describe(sequence, op) : "";
}

void GroupDiagnosis::Fail(const std::string& text) noexcept {
  WriteStatus(text, /*is_end=*/false);
  FlightRecorder& recorder = FlightRecorder::Instance();
  if (recorder.enabled()) {
    const std::lock_guard lock(mutex_);
    if (!communicator_.empty()) recorder.SetCommunicatorState(group_->number, communicator_, text);
  }
  if (!settings_.dump_on_timeout) return;
  if (signal_) signal_->Raise();
  WriteDebugDump(settings_, group_->global_rank());
  if (!signal_ || !settings_.monitoring) return;
  // The store may end with this process, so the others get the time to look.
  signal_->AwaitDumps(group_->size, std::min(settings_.dump_limit, 2 * settings_.coordination + kDumpMargin));
}

}  // namespace npu::distributed
