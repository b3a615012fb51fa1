// Life of a group: making it, shutting it down.
#include "process_group/process_group_hccl.h"

#include <Python.h>
#include <c10/util/Exception.h>

#include <set>
#include <tuple>
#include <utility>

#include "process_group/communicator_registry.h"
#include "process_group/failed_streams.h"

namespace npu::distributed {
namespace {

/// How long a group that is dropped without destroy_process_group() may still finish its works.
constexpr std::chrono::seconds kDropLimit{10};

/// A connection of its own, so that a thread that waits for a key elsewhere is no obstacle.  It is made with the group:
/// the store answers then, and to connect to one that has gone takes as long as the store's own time-out.
c10::intrusive_ptr<c10d::Store> ConnectionOf(const c10::intrusive_ptr<c10d::Store>& store,
                                             std::chrono::milliseconds limit) {
  try {
    c10::intrusive_ptr<c10d::Store> own = store->clone();
    own->setTimeout(limit);
    return own;
  } catch (const std::exception&) {
    return store;  // of a kind that cannot be copied
  }
}

struct LiveGroups {
  std::mutex mutex;
  std::set<ProcessGroupHCCL*> groups;
};

LiveGroups& AllGroups() {
  static PerProcess<LiveGroups> live;
  return live.Get();
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
      environment_(Environment::Read()),
      meeting_store_(ConnectionOf(store_, environment_.connect_timeout)) {
  TORCH_CHECK_VALUE(rank >= 0 && rank < size, "ProcessGroupHCCL: rank should be in [0, size), but got rank ", rank,
                    " of ", size);
  CorrectWithWarning(options_->hccl_config);
  StartWatching();
  init();
  HoldName(diagnosis_->group().number, DefaultName(), Description());
  LiveGroups& live = AllGroups();
  const std::lock_guard lock(live.mutex);
  live.groups.insert(this);
}

ProcessGroupHCCL::~ProcessGroupHCCL() {
  if (IsInherited()) {
    Abandon();
    return;
  }
  ReleaseName(diagnosis_->group().number);
  {
    LiveGroups& live = AllGroups();
    const std::lock_guard lock(live.mutex);
    live.groups.erase(this);
  }
  const GilRelease no_gil;
  watchdog_.reset();
  CloseCommunicators(kDropLimit);
}

void ProcessGroupHCCL::Abandon() {
  new std::tuple(std::move(watchdog_), std::move(diagnosis_), std::move(group_lane_), std::move(pair_lanes_), store_,
                 meeting_store_);
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
  if (IsInherited()) return;
  const GilRelease no_gil;
  auto communicators = EndCalls();
  std::chrono::milliseconds limit{};
  bool failure_told = false;
  {
    const std::lock_guard lock(mutex_);
    limit = environment_.WorkTimeout(options_->timeout);
    failure_told = std::exchange(failure_told_, false);
  }
  if (limit.count() == 0) limit = std::chrono::hours(24 * 365);
  Communicator::Close(std::move(communicators), limit);
  watchdog_.reset();
  diagnosis_->End();
  ReleaseName(diagnosis_->group().number);
  // Who destroys a group after it has refused a call for its failure goes on with another one.
  if (failure_told) ClearFailedStreams(diagnosis_->group().number, std::this_thread::get_id(), kStreamLimit);
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
