// From a call to a task: order it behind the caller's stream, keep its memory, queue it alone or with a whole unit, and
// tell the observers.
#include <c10/util/Exception.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "process_group/failed_streams.h"
#include "process_group/process_group_hccl.h"
#include "process_group/tensor_checks.h"

namespace npu::distributed {

struct ProcessGroupHCCL::ThreadScope {
  struct Member {
    c10::intrusive_ptr<ProcessGroupHCCL> group;
    Unit unit;
  };
  int depth = 0;
  std::vector<Member> members;
};

ProcessGroupHCCL::ThreadScope& ProcessGroupHCCL::Scope() {
  static thread_local ThreadScope scope;
  return scope;
}

// ---- one call -------------------------------------------------------------------------------------------------------

std::chrono::milliseconds ProcessGroupHCCL::NextTimeout(std::chrono::milliseconds requested) {
  std::chrono::milliseconds timeout =
      requested != c10d::kUnsetTimeout ? requested : environment_.WorkTimeout(options_->timeout);
  if (ephemeral_timeout_.count() == 0) return timeout;
  if (ephemeral_until_) {
    const std::shared_ptr<CallRecord> until = ephemeral_until_->lock();
    if (!until || until->finished()) {  // a record that is gone has been finished
      ephemeral_timeout_ = std::chrono::milliseconds(0);
      ephemeral_until_.reset();
    }
  }
  if (timeout.count() > 0) timeout += ephemeral_timeout_;
  return timeout;
}

void ProcessGroupHCCL::AddEphemeralTimeout(std::chrono::milliseconds timeout) {
  const std::lock_guard lock(mutex_);
  ephemeral_timeout_ += timeout;
}

uint64_t ProcessGroupHCCL::NextSequence(bool is_transfer, Unit* unit) {
  uint64_t& sequence = is_transfer ? transfer_sequence_ : sequence_;
  // A coalescing block counts once; a call between _group_start and _group_end is one of its own.
  bool counted = false;
  if (unit != nullptr && coalescing_open_) {
    bool& seen = is_transfer ? unit->has_transfer : unit->has_collective;
    counted = std::exchange(seen, true);
  }
  return counted ? sequence : ++sequence;
}

void ProcessGroupHCCL::OrderAfterCaller(Lane& lane, int device) {
  const npu_runtime_api& runtime = Runtime();
  RequireHealthyStream(runtime.current_stream(device));
  CheckRuntime(runtime.event_record(lane.start.get(), runtime.current_stream(device)),
               "ordering a collective after the current stream");
  CheckRuntime(runtime.event_wait(lane.start.get(), lane.stream), "ordering a collective after the current stream");
}

void ProcessGroupHCCL::RecordStream(const std::vector<at::Tensor>& tensors, npu_stream* stream) const {
  const npu_runtime_api& runtime = Runtime();
  for (const at::Tensor& tensor : tensors) {
    const void* block = tensor.storage().data();
    if (block != nullptr) CheckRuntime(runtime.memory_record_stream(block, stream), "keeping a tensor's memory");
  }
}

WorkHCCL::Start ProcessGroupHCCL::DescribeWork(Call& call, Unit* unit, std::shared_ptr<Submission> submission) {
  WorkHCCL::Start work;
  work.rank = rank_;
  work.op = call.op;
  work.sequence = NextSequence(!call.transfers.empty(), unit);
  work.timeout = NextTimeout(call.timeout);
  // Whoever waits for one call of a _group_start unit may ask is_completed() of every other one right after.
  const bool waits_for_unit = unit != nullptr && !coalescing_open_;
  work.blocks_host = call.blocks_host || waits_for_unit || environment_.blocking_wait;
  work.abort_on_timeout = environment_.blocking_wait;
  work.outputs = call.outputs;
  work.submission = std::move(submission);
  work.group = WeakSelf();
  if (ephemeral_timeout_.count() > 0 && !ephemeral_until_) ephemeral_until_ = RecordOf(work.submission);
  return work;
}

c10::intrusive_ptr<c10d::Work> ProcessGroupHCCL::Run(Call call) {
  RequireOwnProcess();  // before the lock, which a thread that a forked child does not have may hold
  call.frames = diagnosis_->CaptureFrames();  // wants the interpreter lock
  const std::lock_guard lock(mutex_);
  const at::Tensor& witness = call.outputs.empty() ? call.inputs.front() : call.outputs.front();
  const int device = witness.device().index();
  CheckDevice(call.inputs, device);
  CheckDevice(call.outputs, device);
  const bool deferred = coalescing_open_ || Scope().depth > 0;
  const bool on_pair = !deferred && call.peer >= 0 && UsesPairs();
  Lane& lane = on_pair ? PairLane(device, call.peer) : GroupLane(device);
  Unit* const open = deferred ? OpenUnit(lane, device) : nullptr;

  OrderAfterCaller(lane, device);
  Unit single;
  Unit& unit = open != nullptr ? *open : single;
  std::vector<at::Tensor> used = call.inputs;
  for (const auto* more : {&call.outputs, &call.scratch}) used.insert(used.end(), more->begin(), more->end());
  unit.kept.insert(unit.kept.end(), used.begin(), used.end());
  if (open == nullptr) single.submission = NewSubmission(lane, device);
  WorkHCCL::Start start = DescribeWork(call, open, unit.submission);
  if (environment_.memory_reuse == MemoryReuse::kHoldReferences) {
    start.stash = std::make_shared<TensorStash>();
    start.stash->Keep(std::move(used));
  }
  Announce(call, start);
  if (open != nullptr) unit.outputs.insert(unit.outputs.end(), call.outputs.begin(), call.outputs.end());
  if (call.body) unit.bodies.push_back(std::move(call.body));
  if (on_pair) {
    for (Transfer& transfer : call.transfers) transfer.peer = rank_ < transfer.peer ? 1 : 0;  // ranks of the pair
  }
  unit.transfers.insert(unit.transfers.end(), call.transfers.begin(), call.transfers.end());
  if (open == nullptr) Submit(lane, std::move(single), call.label);
  return c10::make_intrusive<WorkHCCL>(std::move(start));
}

std::shared_ptr<Submission> ProcessGroupHCCL::NewSubmission(const Lane& lane, int device) {
  auto submission = std::make_shared<Submission>();
  submission->stream = lane.stream;
  submission->device = device;
  return submission;
}

c10::weak_intrusive_ptr<c10d::Backend> ProcessGroupHCCL::WeakSelf() {
  return c10::weak_intrusive_ptr<c10d::Backend>(
      c10::static_intrusive_pointer_cast<c10d::Backend>(c10::intrusive_ptr<ProcessGroupHCCL>::reclaim_copy(this)));
}

// ---- tasks ----------------------------------------------------------------------------------------------------------

void ProcessGroupHCCL::Submit(Lane& lane, Unit unit, const char* label) {
  Communicator::Body body;
  if (unit.bodies.size() == 1 && unit.transfers.empty()) {
    body = std::move(unit.bodies.front());
  } else {
    // Transfers of a unit are one exchange, behind its collectives: their order in the block does not matter.
    body = [bodies = std::move(unit.bodies), transfers = std::move(unit.transfers)](Collectives& group) {
      for (const Communicator::Body& part : bodies) part(group);
      if (!transfers.empty()) group.Exchange(transfers);
    };
  }
  // From here on the allocator keeps the memory until the task has run: until now the unit has held the tensors.
  if (environment_.memory_reuse != MemoryReuse::kHoldReferences) RecordStream(unit.kept, lane.stream);
  lane.communicator->Launch(label, RecordOf(unit.submission), std::move(body));
  unit.submission->MarkSubmitted();
}

ProcessGroupHCCL::Unit* ProcessGroupHCCL::OpenUnit(const Lane& lane, int device) {
  ThreadScope& scope = Scope();
  Unit* shared = nullptr;
  if (scope.depth > 0) {
    const auto found = std::find_if(scope.members.begin(), scope.members.end(),
                                    [this](const ThreadScope::Member& member) { return member.group.get() == this; });
    if (found != scope.members.end()) {
      shared = &found->unit;
    } else {
      scope.members.push_back({c10::intrusive_ptr<ProcessGroupHCCL>::reclaim_copy(this), Unit{}});
      shared = &scope.members.back().unit;
    }
  }
  if (!coalescing_open_) {
    if (!shared->submission) shared->submission = NewSubmission(lane, device);
    return shared;
  }
  if (!coalescing_) {
    coalescing_.emplace();
    // Inside _group_start the block becomes a part of that unit.
    if (shared != nullptr && !shared->submission) shared->submission = NewSubmission(lane, device);
    coalescing_->submission = shared != nullptr ? shared->submission : NewSubmission(lane, device);
  }
  return &*coalescing_;
}

void ProcessGroupHCCL::startCoalescing() {
  const std::lock_guard lock(mutex_);
  coalescing_open_ = true;
  coalescing_.reset();
}

c10::intrusive_ptr<c10d::Work> ProcessGroupHCCL::endCoalescing() {
  const std::lock_guard lock(mutex_);
  coalescing_open_ = false;
  if (!coalescing_) return nullptr;
  Unit unit = std::move(*coalescing_);
  coalescing_.reset();
  WorkHCCL::Start work;
  work.rank = rank_;
  work.op = c10d::OpType::COALESCED;
  work.sequence = unit.has_collective ? sequence_ : transfer_sequence_;
  work.timeout = NextTimeout(c10d::kUnsetTimeout);
  work.blocks_host = environment_.blocking_wait;
  work.abort_on_timeout = environment_.blocking_wait;
  work.outputs = std::move(unit.outputs);
  work.submission = unit.submission;
  work.group = WeakSelf();
  AnnounceBlock(work, !unit.has_collective);
  if (Scope().depth > 0) {
    work.blocks_host = true;
    Unit& whole = *OpenUnit(group_lane_, device_);
    std::move(unit.bodies.begin(), unit.bodies.end(), std::back_inserter(whole.bodies));
    std::move(unit.transfers.begin(), unit.transfers.end(), std::back_inserter(whole.transfers));
    std::move(unit.kept.begin(), unit.kept.end(), std::back_inserter(whole.kept));
  } else {
    Submit(GroupLane(device_), std::move(unit), "hccl::coalesced");
  }
  return c10::make_intrusive<WorkHCCL>(std::move(work));
}

void ProcessGroupHCCL::GroupStart() { ++Scope().depth; }

void ProcessGroupHCCL::GroupEnd() {
  ThreadScope& scope = Scope();
  TORCH_CHECK(scope.depth > 0, "_group_end: this thread has no open _group_start");
  if (--scope.depth > 0) return;
  std::vector<ThreadScope::Member> members;
  members.swap(scope.members);
  for (ThreadScope::Member& member : members) {
    ProcessGroupHCCL& group = *member.group;
    const std::lock_guard lock(group.mutex_);
    group.Submit(group.GroupLane(group.device_), std::move(member.unit), "hccl::group");
  }
}

}  // namespace npu::distributed
