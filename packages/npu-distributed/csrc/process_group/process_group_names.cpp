// Names, handles and stream ids of a group's communicators.
#include <c10/util/Exception.h>

#include "process_group/communicator_registry.h"
#include "process_group/process_group_hccl.h"

namespace npu::distributed {

std::string ProcessGroupHCCL::DefaultName() const {
  return options_->group_id.empty() ? "" : "group_name_" + options_->group_id;
}

std::string ProcessGroupHCCL::Description() const {
  const std::string& id = options_->group_id;
  return (id.empty() ? std::string("a process group without a name") : "process group \"" + id + "\"") + " of " +
         std::to_string(size_) + (size_ == 1 ? " rank" : " ranks");
}

std::string ProcessGroupHCCL::CommName(int rank, bool create) {
  TORCH_CHECK(rank >= 0, "get_hccl_comm_name: rankid should not be negative, but got ", rank);
  const int device = CurrentDevice();
  const int count = Runtime().device_count();
  if (count > 0 && rank % count != device) {
    TORCH_WARN_ONCE("get_hccl_comm_name: rank ", rank, " belongs to npu:", rank % count, ", but npu:", device,
                    " is current; the current device is used");
  }
  const std::lock_guard lock(mutex_);
  if (create) return CommunicatorOn(device).name();
  const auto& communicator = group_lane_.communicator;
  return communicator && device_ == device ? communicator->name() : "";
}

void ProcessGroupHCCL::SetCommName(const std::string& name) {
  constexpr size_t kLongest = 127;
  TORCH_CHECK(!name.empty() && name.size() <= kLongest, "_set_hccl_comm_name: expected 1 to ", kLongest,
              " characters, but got ", name.size());
  const std::lock_guard lock(mutex_);
  RequireOwnProcess();
  const std::string present = group_lane_.communicator ? group_lane_.communicator->name() : comm_name_;
  TORCH_CHECK(present.empty() || present == name, "_set_hccl_comm_name: the name is already set to \"", present,
              "\" and cannot be duplicated");
  const std::string holder = HoldName(diagnosis_->group().number, name, Description(), /*only_if_free=*/true);
  TORCH_CHECK(holder.empty(), "_set_hccl_comm_name: the name \"", name, "\" belongs to ", holder,
              "; give this group another one, or destroy that group first");
  comm_name_ = name;
}

int64_t ProcessGroupHCCL::CommHandle(int rank) {
  TORCH_CHECK(rank >= 0, "get_hccl_comm: rankid should not be negative, but got ", rank);
  const int device = CurrentDevice();
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(reinterpret_cast<intptr_t>(&CommunicatorOn(device)));
}

int64_t ProcessGroupHCCL::CollectiveStreamId(int device) {
  const std::lock_guard lock(mutex_);
  return Runtime().stream_id(StreamOn(device));
}

int64_t ProcessGroupHCCL::ExistingStreamId() const {
  const std::lock_guard lock(mutex_);
  return group_lane_.stream != nullptr ? Runtime().stream_id(group_lane_.stream) : -1;
}

int64_t ProcessGroupHCCL::PairStreamId(int peer) const {
  TORCH_CHECK(peer >= 0 && peer < size_, "hccl: a point-to-point stream belongs to a peer in [0, ", size_,
              "), but got peer=", peer);
  const std::lock_guard lock(mutex_);
  npu_stream* stream = UsesPairs() ? nullptr : group_lane_.stream;
  const auto index = static_cast<size_t>(peer);
  if (index < pair_lanes_.size() && pair_lanes_[index]) stream = pair_lanes_[index]->stream;
  return stream != nullptr ? Runtime().stream_id(stream) : -1;
}

}  // namespace npu::distributed
