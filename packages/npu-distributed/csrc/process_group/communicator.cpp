#include "process_group/communicator.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "collectives/deferred_collectives.h"
#include "transport/comm_error.h"

namespace npu::distributed {

// The runtime names the task itself where it reports an error of the stream; the other ways to the caller do not.
std::string Communicator::Operation::Attribute(const std::string& text) const {
  return fused_operator == nullptr ? text : std::string(fused_operator) + ": " + text;
}

namespace {

constexpr std::chrono::seconds kAbortGrace{10};

npu_status Report(npu_error* error, npu_status status, const std::string& text) {
  std::strncpy(error->message, text.c_str(), sizeof error->message - 1);
  error->message[sizeof error->message - 1] = '\0';
  return status;
}

}  // namespace

Communicator::Communicator(const CommunicatorSettings& settings, KeyValueStore store, LinkFactory make_link)
    : settings_(settings) {
  const ConnectSettings connection = MakeConnectSettings();
  if (settings.connect_at_first_call) {
    collectives_ = std::make_unique<DeferredCollectives>(connection, std::move(store), memory_, std::move(make_link));
  } else {
    collectives_ = Connect(connection, std::move(store), memory_, make_link);
  }
  // A group that was made without a name gets one that all its ranks know and no other group has.
  if (settings_.name.empty()) settings_.name = "group_name_" + std::to_string(collectives_->identity());
}

ConnectSettings Communicator::MakeConnectSettings() {
  ConnectSettings connection;
  connection.meeting.rank = settings_.rank;
  connection.meeting.size = settings_.size;
  connection.meeting.limit = settings_.connect_timeout;
  connection.meeting.names = settings_.rank_names;
  connection.meeting.check = settings_.check_meeting;
  connection.execution_limit = settings_.execution_timeout;
  connection.numbers = settings_.rank_numbers;
  if (settings_.global_ranks.empty()) return connection;
  connection.meeting.ended = [this](int rank) {
    return MetProcesses::Ended(settings_.global_ranks[static_cast<size_t>(rank)]);
  };
  connection.met = [this](const std::vector<ProcessIdentity>& ranks) {
    for (const ProcessIdentity& peer : ranks) met_.Add(settings_.global_ranks[static_cast<size_t>(peer.rank)], peer);
  };
  return connection;
}

Communicator::~Communicator() {
  std::string failure = this->failure();
  if (failure.empty()) return;
  // The stream goes back to the pool: its next user must not inherit our error.  It has reached a waiter or the
  // watchdog through the record.
  Runtime().stream_synchronize(settings_.stream);
}

npu_status Communicator::RunTask(void* payload, npu_error* error) {
  Operation& operation = **static_cast<Operation**>(payload);
  Communicator& self = *operation.communicator;
  operation.record->Start();
  try {
    operation.body(*self.collectives_);
    operation.record->Succeed();
    return NPU_OK;
  } catch (const CommError& failure) {
    const std::string text = operation.Attribute(failure.what());
    self.NoteFailure(text);
    operation.record->Fail(failure.status(), text);
    return Report(error, failure.status(), failure.what());
  } catch (const std::exception& failure) {
    const std::string text = operation.Attribute(failure.what());
    self.Abort(text);
    operation.record->Fail(NPU_ERROR_TASK_FAILED, text);
    return Report(error, NPU_ERROR_TASK_FAILED, failure.what());
  }
}

void Communicator::DestroyTask(void* payload) {
  Operation* operation = *static_cast<Operation**>(payload);
  Communicator* self = operation->communicator;
  if (!operation->record->finished()) {
    // Dropped: the stream carried an error, so this collective never ran and peers wait for it in vain.
    const std::string before = self->failure();
    const std::string text = before.empty() ? "hccl: the collective was dropped because an earlier task on the "
                                              "communication stream failed"
                                            : before;
    self->Abort(text);
    operation->record->Fail(NPU_ERROR_TASK_FAILED, text);
  }
  delete operation;
  self->OperationEnded();
}

void Communicator::LaunchFused(const char* label, const std::shared_ptr<CallRecord>& record, Body body) {
  if (fused_observer_) fused_observer_(label, record);
  Queue({this, label, label, record, std::move(body)});
}

void Communicator::Queue(Operation described) {
  auto operation = std::make_unique<Operation>(std::move(described));
  Operation* payload = operation.get();
  npu_task task{};
  task.run = &Communicator::RunTask;
  task.destroy = &Communicator::DestroyTask;
  task.name = payload->label;
  task.payload = &payload;
  task.payload_size = sizeof payload;
  task.kind = NPU_TASK_BLOCKING;
  {
    const std::lock_guard lock(mutex_);
    ++in_flight_;
  }
  const npu_status status = Runtime().launch(settings_.stream, &task, nullptr, 0);
  if (status != NPU_OK) {
    OperationEnded();
    CheckRuntime(status, "queueing a collective");
  }
  operation.release();  // DestroyTask deletes it
}

std::string Communicator::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void Communicator::NoteFailure(const std::string& text) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) return;
    failure_ = text;
  }
  // The host may be far from its next synchronisation, so the reason is said at once.
  std::fprintf(stderr, "[rank %d, group %s, npu:%d] %s\n", settings_.rank, settings_.name.c_str(), settings_.device,
               text.c_str());
}

void Communicator::Abort(const std::string& reason) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (failure_.empty()) failure_ = reason;
  }
  collectives_->Abort(reason.c_str());
}

void Communicator::OperationEnded() noexcept {
  const std::lock_guard lock(mutex_);
  if (--in_flight_ == 0) idle_.notify_all();
}

bool Communicator::Drain(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, limit, [this] { return in_flight_ == 0; });
}

void Communicator::Close(std::vector<std::unique_ptr<Communicator>> communicators,
                         std::chrono::milliseconds limit) noexcept {
  using Clock = std::chrono::steady_clock;
  const auto close_idle = [&](Clock::time_point deadline) {
    for (std::unique_ptr<Communicator>& communicator : communicators) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
      if (!communicator->Drain(std::max(left, std::chrono::milliseconds(0)))) continue;
      communicator->collectives_->Leave();
      communicator.reset();
    }
    std::erase(communicators, nullptr);
  };
  close_idle(Clock::now());  // nobody needs to wait for these
  close_idle(Clock::now() + limit);
  for (const auto& communicator : communicators) {
    communicator->Abort("hccl: rank " + std::to_string(communicator->settings_.rank) +
                        " closed the process group while a collective was pending");
  }
  close_idle(Clock::now() + kAbortGrace);
  for (std::unique_ptr<Communicator>& communicator : communicators) {
    communicator->collectives_->Leave();
    (void)communicator.release();
  }
}

}  // namespace npu::distributed
