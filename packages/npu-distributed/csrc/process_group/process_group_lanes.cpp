// The communicators of a group and their streams: the group's own, and one for each pair of ranks that talks point to
// point.
#include <c10/util/Exception.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "process_group/communicator_registry.h"
#include "process_group/failed_streams.h"
#include "process_group/gloo_link.h"
#include "process_group/process_group_hccl.h"
#include "process_group/stream_lease.h"
#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

using StorePtr = c10::intrusive_ptr<c10d::Store>;

/// What the store is and who keeps it, for people.
std::string NameOf(const StorePtr& store) {
  StorePtr base = store;
  if (auto* prefixed = dynamic_cast<c10d::PrefixStore*>(base.get())) base = prefixed->getUnderlyingNonPrefixStore();
  const auto* tcp = dynamic_cast<c10d::TCPStore*>(base.get());
  if (tcp == nullptr) return "the store";
  return "the store (TCPStore at " + tcp->getHost() + ":" + std::to_string(tcp->getPort()) +
         ", kept by rank 0 of the job or by its launcher)";
}

KeyValueStore ViewOf(StorePtr store) {
  KeyValueStore view;
  view.name = NameOf(store);
  view.set = [store](const std::string& key, const std::string& value) {
    store->set(key, std::vector<uint8_t>(value.begin(), value.end()));
  };
  view.find = [store](const std::string& key) -> std::optional<std::string> {
    if (!store->check({key})) return std::nullopt;
    const std::vector<uint8_t> value = store->get(key);
    return std::string(value.begin(), value.end());
  };
  return view;
}

std::mutex shared_streams_mutex;

/// The stream that groups with this buffer name share on a device.
std::shared_ptr<npu_stream>& SharedStream(int device, const std::string& buffer_name) {
  static auto* streams = new std::map<std::pair<int, std::string>, std::shared_ptr<npu_stream>>;
  return (*streams)[{device, buffer_name}];
}

std::string PairName(int rank, int peer) {
  return std::to_string(std::min(rank, peer)) + ":" + std::to_string(std::max(rank, peer));
}

std::string StorePrefix(int generation, int rank, int peer) {
  const std::string prefix = "hccl/" + std::to_string(generation);
  return peer < 0 ? prefix : "hccl/" + PairName(rank, peer) + "/" + std::to_string(generation);
}

}  // namespace

template <class Visit>
void ProcessGroupHCCL::ForEachLane(Visit visit) {
  visit(group_lane_);
  for (const auto& lane : pair_lanes_) {
    if (lane) visit(*lane);
  }
}

void ProcessGroupHCCL::LeaseStreamFor(Lane& lane, int device) const {
  const int priority = options_->is_high_priority_stream || environment_.high_priority ? -1 : 0;
  lane.lease = LeaseStream(device, priority);
  lane.stream = lane.lease.get();
}

npu_stream* ProcessGroupHCCL::StreamOn(int device) {
  TORCH_CHECK(device_ < 0 || device_ == device,
              "ProcessGroupHCCL support one device per process only: this group uses npu:", device_,
              ", but got a tensor on npu:", device);
  device_ = device;
  Lane& lane = group_lane_;
  if (lane.stream != nullptr) return lane.stream;
  const std::string buffer = BufferName(options_->hccl_config);
  if (buffer.empty()) {
    LeaseStreamFor(lane, device);
    return lane.stream;
  }
  const std::lock_guard lock(shared_streams_mutex);
  std::shared_ptr<npu_stream>& shared = SharedStream(device, buffer);
  if (!shared) {
    LeaseStreamFor(lane, device);
    shared = lane.lease;
  }
  lane.lease = shared;
  return lane.stream = shared.get();
}

void ProcessGroupHCCL::RequireOwnProcess() const {
  TORCH_CHECK(!IsInherited(),
              "hccl: this process group belongs to the process that this one was forked from. A forked "
              "child cannot use it: start processes with \"spawn\" or \"forkserver\" and make a group in each");
}

void ProcessGroupHCCL::CheckUsable(const Lane& lane) {
  RequireOwnProcess();
  TORCH_CHECK(!shut_down_, "hccl: this process group has been destroyed");
  if (!lane.communicator) return;
  const std::string failure = lane.communicator->failure();
  if (failure.empty()) return;
  failure_told_ = true;
  C10_THROW_ERROR(DistBackendError,
                  "hccl: an earlier collective of this group failed, so the group cannot go on: " + failure +
                      ". Destroy it and initialise again, or call torch_npu.distributed.reinit_process_group()");
}

void ProcessGroupHCCL::NameRanks(CommunicatorSettings& settings, int peer) const {
  std::vector<int> ranks{std::min(rank_, peer), std::max(rank_, peer)};
  if (peer < 0) {
    ranks.resize(static_cast<size_t>(size_));
    std::iota(ranks.begin(), ranks.end(), 0);
  }
  // A group that torch has not made does not know who its ranks are in the job.
  const bool knows_job = !options_->group_id.empty();
  const std::vector<uint64_t>& in_job = options_->global_ranks_in_group;
  for (const int rank : ranks) {
    std::string name = "rank " + std::to_string(rank);
    if (knows_job) {
      const auto index = static_cast<size_t>(rank);
      const uint64_t global = index < in_job.size() ? in_job[index] : index;
      settings.global_ranks.push_back(global);
      if (global != index) name += " (global rank " + std::to_string(global) + ")";
    }
    settings.rank_names.push_back(std::move(name));
    settings.rank_numbers.push_back(rank);
  }
}

std::function<void()> ProcessGroupHCCL::AbortCheck() {
  const std::lock_guard lock(live_mutex_);
  return [this, before = aborts_] {
    const std::lock_guard lock(live_mutex_);
    if (aborts_ != before) throw CommError(NPU_ERROR_STOPPED, abort_reason_);
  };
}

std::unique_ptr<Communicator> ProcessGroupHCCL::Connect(const Lane& lane, int peer) {
  ValidateConfig(options_->hccl_config);
  npu_device_properties properties{};
  properties.struct_size = sizeof properties;
  CheckRuntime(Runtime().device_properties(device_, &properties), "reading device properties");
  TORCH_CHECK_NOT_IMPLEMENTED(properties.is_emulated != 0, "hccl: driver ", properties.driver,
                              " is not supported: this version of npu-distributed moves bytes with the CPU, so device "
                              "memory must be addressable by it (driver \"host\")");
  CommunicatorSettings settings;
  settings.device = device_;
  settings.stream = lane.stream;
  settings.connect_timeout = environment_.connect_timeout;
  settings.execution_timeout = environment_.execution_timeout;
  if (const auto limit = ExecutionTimeout(options_->hccl_config)) settings.execution_timeout = *limit;
  settings.name = comm_name_;
  if (settings.name.empty()) settings.name = DefaultName();
  if (peer < 0) {
    settings.rank = rank_;
    settings.size = size_;
    settings.check_meeting = AbortCheck();
  } else {
    settings.rank = rank_ < peer ? 0 : 1;
    settings.size = 2;
    settings.connect_at_first_call = true;
    settings.name += " " + PairName(rank_, peer);
  }
  NameRanks(settings, peer);
  const StorePtr store =
      c10::make_intrusive<c10d::PrefixStore>(StorePrefix(lane.generation, rank_, peer), meeting_store_);
  try {
    return std::make_unique<Communicator>(settings, ViewOf(store), GlooLinks(store, settings));
  } catch (const CommError& error) {
    ThrowStatus(error.status(), error.what());
  }
}

ProcessGroupHCCL::Lane& ProcessGroupHCCL::GroupLane(int device) {
  Lane& lane = group_lane_;
  CheckUsable(lane);
  StreamOn(device);
  if (lane.communicator) return lane;
  std::unique_ptr<Communicator> made = Connect(lane, -1);
  RegisterCommunicator(made->name(), device, made.get());
  lane.registered_name = made->name();
  diagnosis_->CommunicatorMade(made->name(), getGroupDesc());
  Adopt(lane, std::move(made));
  if (!lane.start) lane.start = MakeEvent();
  return lane;
}

ProcessGroupHCCL::Lane& ProcessGroupHCCL::PairLane(int device, int peer) {
  if (!UsesPairs()) return GroupLane(device);
  CheckUsable(group_lane_);
  StreamOn(device);
  pair_lanes_.resize(static_cast<size_t>(size_));
  std::unique_ptr<Lane>& slot = pair_lanes_[static_cast<size_t>(peer)];
  if (!slot) slot = std::make_unique<Lane>();
  Lane& lane = *slot;
  CheckUsable(lane);
  if (lane.stream == nullptr) LeaseStreamFor(lane, device);
  if (!lane.start) lane.start = MakeEvent();
  if (!lane.communicator) Adopt(lane, Connect(lane, peer));
  return lane;
}

// ---- ends -----------------------------------------------------------------------------------------------------------

std::vector<std::unique_ptr<Communicator>> ProcessGroupHCCL::TakeCommunicators(bool only_failed) {
  std::vector<std::unique_ptr<Communicator>> taken;
  const std::lock_guard lock(mutex_);
  ForEachLane([&](Lane& lane) {
    if (!lane.communicator || (only_failed && lane.communicator->failure().empty())) return;
    if (!lane.registered_name.empty()) UnregisterCommunicator(lane.registered_name, lane.communicator->device());
    lane.registered_name.clear();
    ++lane.generation;
    const std::lock_guard live_lock(live_mutex_);
    std::erase(live_, lane.communicator.get());
    taken.push_back(std::move(lane.communicator));
  });
  return taken;
}

void ProcessGroupHCCL::CloseCommunicators(std::chrono::milliseconds limit, bool only_failed) {
  Communicator::Close(TakeCommunicators(only_failed), limit);
}

void ProcessGroupHCCL::Adopt(Lane& lane, std::unique_ptr<Communicator> communicator) {
  lane.communicator = std::move(communicator);
  lane.communicator->ObserveFused([this](const char* label, const auto& record) { WatchFused(label, record); });
  const std::lock_guard lock(live_mutex_);
  live_.push_back(lane.communicator.get());
}

void ProcessGroupHCCL::AbortCommunicators(const std::string& reason) {
  const std::lock_guard lock(live_mutex_);
  ++aborts_;
  abort_reason_ = reason;
  for (Communicator* communicator : live_) communicator->Abort(reason);
}

void ProcessGroupHCCL::Abort(const std::string& reason) {
  if (IsInherited()) return;
  AbortCommunicators(reason);
  CloseCommunicators(std::chrono::milliseconds(0));
  if (watchdog_) watchdog_->Forgive();
  // Who aborts knows that the pending works have failed; other threads that wait for them are still to hear of it.
  ClearFailedStreams(diagnosis_->group().number, std::this_thread::get_id(), kStreamLimit);
}

void ProcessGroupHCCL::abort() { Abort("hccl: rank " + std::to_string(rank_) + " aborted the process group"); }

void ProcessGroupHCCL::Resume(int device) {
  RequireOwnProcess();
  {
    const std::lock_guard lock(mutex_);
    TORCH_CHECK(device_ < 0 || device < 0 || device_ == device, "resume_hccl_comm: this group uses npu:", device_,
                ", not npu:", device);
  }
  CloseCommunicators(std::chrono::milliseconds(0), /*only_failed=*/true);
  if (watchdog_) watchdog_->Forgive();
  ClearFailedStreams(diagnosis_->group().number, std::nullopt, kStreamLimit);
}

void ProcessGroupHCCL::DeleteStoreKeys() {
  RequireOwnProcess();
  const std::lock_guard lock(mutex_);
  const auto forget = [&](const Lane& lane, int peer, int pair_rank) {
    c10d::PrefixStore(StorePrefix(lane.generation, rank_, peer), meeting_store_)
        .deleteKey("rank/" + std::to_string(pair_rank));
  };
  forget(group_lane_, -1, rank_);
  for (size_t peer = 0; peer < pair_lanes_.size(); ++peer) {
    const int other = static_cast<int>(peer);
    if (pair_lanes_[peer]) forget(*pair_lanes_[peer], other, rank_ < other ? 0 : 1);
  }
}

c10d::ErrorType ProcessGroupHCCL::getError() {
  const std::lock_guard lock(mutex_);
  bool failed = false;
  ForEachLane([&](Lane& lane) { failed |= lane.communicator && !lane.communicator->failure().empty(); });
  return failed ? c10d::ErrorType::COMM_ERROR : c10d::ErrorType::SUCCESS;
}

void ProcessGroupHCCL::waitForPendingWorks() {
  std::vector<npu_stream*> streams;
  {
    const std::lock_guard lock(mutex_);
    ForEachLane([&](Lane& lane) {
      if (lane.stream != nullptr) streams.push_back(lane.stream);
    });
  }
  for (npu_stream* stream : streams) CheckRuntime(Runtime().stream_synchronize(stream), "waiting for pending works");
}

}  // namespace npu::distributed
