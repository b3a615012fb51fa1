// Life of a group: making it, shutting it down.
#include "process_group/process_group_hccl.h"

#include <Python.h>
#include <c10/util/Exception.h>

#include <set>

namespace npu::distributed {
namespace {

/// How long a group that is dropped without destroy_process_group() may still finish its works.
constexpr std::chrono::seconds kDropLimit{10};

struct LiveGroups {
  std::mutex mutex;
  std::set<ProcessGroupHCCL*> groups;
};

LiveGroups& AllGroups() {
  static LiveGroups* live = new LiveGroups;  // outlives groups that are destroyed during exit
  return *live;
}

/// Lets other Python threads run while this one waits, when it holds the interpreter lock.
class GilRelease {
 public:
  GilRelease() {
    if (Py_IsInitialized() != 0 && PyGILState_Check() != 0) state_ = PyEval_SaveThread();
  }
  ~GilRelease() {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_ = nullptr;
};

}  // namespace

ProcessGroupHCCL::ProcessGroupHCCL(c10::intrusive_ptr<c10d::Store> store, int rank, int size,
                                   c10::intrusive_ptr<Options> options)
    : Backend(rank, size),
      store_(std::move(store)),
      options_(c10::make_intrusive<Options>(*options)),
      environment_(Environment::Read()) {
  TORCH_CHECK_VALUE(rank >= 0 && rank < size, "ProcessGroupHCCL: rank should be in [0, size), but got rank ", rank,
                    " of ", size);
  CorrectWithWarning(options_->hccl_config);
  StartWatching();
  init();
  LiveGroups& live = AllGroups();
  const std::lock_guard lock(live.mutex);
  live.groups.insert(this);
}

ProcessGroupHCCL::~ProcessGroupHCCL() {
  {
    LiveGroups& live = AllGroups();
    const std::lock_guard lock(live.mutex);
    live.groups.erase(this);
  }
  const GilRelease no_gil;
  watchdog_.reset();
  CloseCommunicators(kDropLimit);
}

c10::intrusive_ptr<c10d::Backend::Options> ProcessGroupHCCL::getBackendOptions() {
  return c10::static_intrusive_pointer_cast<Backend::Options>(options_);
}

void ProcessGroupHCCL::setTimeout(std::chrono::milliseconds timeout) {
  const std::lock_guard lock(mutex_);
  options_->timeout = timeout;
}

uint64_t ProcessGroupHCCL::getSequenceNumberForGroup() {
  const std::lock_guard lock(mutex_);
  return sequence_;
}

void ProcessGroupHCCL::eagerConnectSingleDevice(at::Device device) {
  TORCH_CHECK_VALUE(device.type() == c10::DeviceType::PrivateUse1,
                    "eager_connect_single_device: expected an npu device, but got ", device);
  const int index = device.has_index() ? device.index() : CurrentDevice();
  const std::lock_guard lock(mutex_);
  CommunicatorOn(index);
}

void ProcessGroupHCCL::ClearWatchedWorks() {
  if (watchdog_) watchdog_->Clear();
}

std::vector<std::unique_ptr<Communicator>> ProcessGroupHCCL::EndCalls() {
  {
    const std::lock_guard lock(mutex_);
    shut_down_ = true;
  }
  return TakeCommunicators(/*only_failed=*/false);
}

void ProcessGroupHCCL::shutdown() {
  const GilRelease no_gil;
  auto communicators = EndCalls();
  std::chrono::milliseconds limit{};
  {
    const std::lock_guard lock(mutex_);
    limit = environment_.WorkTimeout(options_->timeout);
  }
  if (limit.count() == 0) limit = std::chrono::hours(24 * 365);
  Communicator::Close(std::move(communicators), limit);
  watchdog_.reset();
  diagnosis_->End();
}

void ShutdownAllGroups(std::chrono::milliseconds limit, const std::function<void()>& before_end) {
  std::set<ProcessGroupHCCL*> groups;
  {
    LiveGroups& live = AllGroups();
    const std::lock_guard lock(live.mutex);
    groups = live.groups;
  }
  for (ProcessGroupHCCL* group : groups) {
    if (!group->MustEndProcess()) continue;
    before_end();
    group->EndProcess();
  }
  // All groups share the time: one after the other, a few that are stuck would keep the process for minutes.
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (ProcessGroupHCCL* group : groups) {
    for (auto& communicator : group->EndCalls()) communicators.push_back(std::move(communicator));
  }
  Communicator::Close(std::move(communicators), limit);
  for (ProcessGroupHCCL* group : groups) group->shutdown();
}

}  // namespace npu::distributed
