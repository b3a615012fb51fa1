// What a group tells about its calls: to the watchdog, the flight recorder and the other records.
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <string_view>

#include "process_group/process_group_hccl.h"

namespace npu::distributed {
namespace {

using c10d::OpType;

GroupIdentity IdentityOf(int rank, int size, const ProcessGroupHCCL::Options& options) {
  static std::atomic<size_t> next_number{0};
  GroupIdentity identity;
  identity.number = next_number++;
  identity.id = options.group_id;
  identity.name = "group_name_" + (options.group_id.empty() ? std::to_string(identity.number) : options.group_id);
  identity.rank = rank;
  identity.size = size;
  identity.global_ranks = options.global_ranks_in_group;
  return identity;
}

/// Single collectives have no name in the record, coalesced ones have.
std::string ProfilingName(OpType op, const std::string& label, size_t outputs) {
  constexpr std::string_view kCoalesced = "_coalesced";
  const std::string name = "hccl:" + label.substr(label.rfind(':') + 1);
  if (name.ends_with(kCoalesced)) return name;
  return op == OpType::_ALLGATHER_BASE && outputs > 1 ? name + std::string(kCoalesced) : "";
}

/// Of calls that work in place the group knows outputs only, and perhaps the factor of a reduction.
bool WorksInPlace(OpType op, const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& outputs) {
  if (op == OpType::REDUCE) return inputs.empty() || inputs.front().numel() != outputs.front().numel();
  return op == OpType::ALLREDUCE || op == OpType::ALLREDUCE_COALESCED || op == OpType::BROADCAST;
}

}  // namespace

void ProcessGroupHCCL::StartWatching() {
  environment_.WarnIfTimeoutIsShort(options_->timeout);
  diagnosis_ = std::make_unique<GroupDiagnosis>(IdentityOf(rank_, size_, *options_), environment_, store_);
  if (environment_.error_handling == ErrorHandling::kNone) return;
  Watchdog::Group watched;
  watched.rank = rank_;
  watched.handling = environment_.error_handling;
  watched.diagnosis = diagnosis_.get();
  watched.abort = [this](const std::string& reason) { AbortCommunicators(reason); };
  watchdog_ = std::make_unique<Watchdog>(std::move(watched));
}

void ProcessGroupHCCL::Announce(const Call& call, const WorkHCCL::Start& work) {
  const bool is_transfer = !call.transfers.empty();
  work.submission->record.BelongTo(diagnosis_->group().number);
  if (!is_transfer) {
    const auto sequence = static_cast<int64_t>(work.sequence);
    work.submission->record.CountAs(diagnosis_->progress(), sequence);
    diagnosis_->progress()->enqueued.store(sequence, std::memory_order_relaxed);
  }
  if (diagnosis_->observes_calls()) Describe(call, work);
  if (!watchdog_) return;
  Watchdog::Entry entry;
  entry.record = RecordOf(work.submission);
  entry.stash = work.stash;
  entry.op = work.op;
  entry.sequence = work.sequence;
  entry.is_transfer = is_transfer;
  entry.timeout = work.timeout;
  watchdog_->Add(std::move(entry));
}

void ProcessGroupHCCL::Describe(const Call& call, const WorkHCCL::Start& work) {
  const bool is_transfer = !call.transfers.empty();
  AnnouncedCall announced;
  announced.op = c10d::opTypeToString(work.op);
  announced.device = work.submission->device;
  (is_transfer ? announced.p2p_sequence : announced.sequence) = work.sequence;
  announced.timeout = work.timeout;
  announced.record = RecordOf(work.submission);
  announced.frames = call.frames;
  if (is_transfer) {
    DescribeTransfers(call, std::move(announced));
    return;
  }
  announced.profiling_name = ProfilingName(call.op, call.label, call.outputs.size());
  announced.outputs = call.outputs;
  announced.inputs = WorksInPlace(call.op, call.inputs, call.outputs) ? call.outputs : call.inputs;
  diagnosis_->Announce(announced);
}

void ProcessGroupHCCL::DescribeTransfers(const Call& call, AnnouncedCall announced) {
  const bool in_batch = call.peer < 0 || coalescing_open_;
  auto sent = call.inputs.begin();
  auto received = call.outputs.begin();
  AnnouncedCall member = announced;
  for (const Transfer& transfer : call.transfers) {
    member.op = c10d::opTypeToString(transfer.is_send ? OpType::SEND : OpType::RECV);
    member.profiling_name = std::string("hccl:") + (transfer.is_send ? "send " : "recv ") + std::to_string(rank_) +
                            (transfer.is_send ? "->" : "<-") + std::to_string(transfer.peer);
    member.peers = {std::min(rank_, transfer.peer), std::max(rank_, transfer.peer)};
    member.in_batch = in_batch;
    member.inputs = {transfer.is_send ? *sent++ : *received++};
    member.outputs = member.inputs;
    diagnosis_->Announce(member);
  }
  if (call.peer >= 0) return;
  announced.profiling_name = "hccl:coalesced";
  announced.is_block = true;
  announced.peers = {rank_};
  for (const Transfer& transfer : call.transfers) announced.peers.push_back(transfer.peer);
  std::sort(announced.peers.begin(), announced.peers.end());
  announced.peers.erase(std::unique(announced.peers.begin(), announced.peers.end()), announced.peers.end());
  diagnosis_->Announce(announced);
}

void ProcessGroupHCCL::AnnounceBlock(const WorkHCCL::Start& work, bool is_transfer) {
  if (!diagnosis_->observes_calls()) return;
  AnnouncedCall announced;
  announced.op = c10d::opTypeToString(work.op);
  announced.profiling_name = "hccl:coalesced";
  announced.device = work.submission->device;
  announced.is_block = true;
  (is_transfer ? announced.p2p_sequence : announced.sequence) = work.sequence;
  if (is_transfer) announced.peers = {rank_};
  announced.timeout = work.timeout;
  announced.record = RecordOf(work.submission);
  diagnosis_->Announce(announced);
}

void ProcessGroupHCCL::WatchFused(const char* label, const std::shared_ptr<CallRecord>& record) {
  record->BelongTo(diagnosis_->group().number);
  if (!watchdog_) return;
  const std::lock_guard lock(mutex_);
  Watchdog::Entry entry;
  entry.record = record;
  entry.fused_operator = label;
  entry.timeout = NextTimeout(c10d::kUnsetTimeout);
  watchdog_->Add(std::move(entry));
}

void ProcessGroupHCCL::SetWatchdogStatus(int status) {
  TORCH_CHECK_VALUE(status >= 0 && status <= 2, "set_watchdog_status: expected 0 (init), 1 (run) or 2 (stop), but got ",
                    status);
  if (watchdog_) watchdog_->SetStatus(static_cast<Watchdog::Status>(status));
}

void ProcessGroupHCCL::enableCollectivesTiming() { diagnosis_->EnableTiming(); }

bool ProcessGroupHCCL::MustEndProcess() { return watchdog_ && watchdog_->MustEndProcess(); }

void ProcessGroupHCCL::EndProcess() { watchdog_->EndProcess(); }

}  // namespace npu::distributed
