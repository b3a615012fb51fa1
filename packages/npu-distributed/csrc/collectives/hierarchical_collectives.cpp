#include "collectives/hierarchical_collectives.h"

#include <algorithm>
#include <cstring>

#include "collectives/lanes.h"
#include "collectives/matching.h"
#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

constexpr uint64_t kRecordMagic = 0x6e70752d68636332ull;

/// How often an idle rank looks whether a neighbour has failed, so that ranks of other hosts need not wait for long.
constexpr std::chrono::milliseconds kIdleInterval{200};

struct RecordHeader {
  uint64_t magic;
  uint64_t number;
  uint64_t payload_bytes;
};

struct AnnouncementHead {
  uint32_t part_count;
  uint32_t data_bytes;
};

template <class T>
void Append(std::vector<std::byte>& to, const T* values, size_t count) {
  const auto* bytes = reinterpret_cast<const std::byte*>(values);
  to.insert(to.end(), bytes, bytes + count * sizeof(T));
}

/// Reads values one after another; false when the bytes are used up.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <class T>
  bool Read(T* values, size_t count) {
    const size_t wanted = count * sizeof(T);
    if (wanted > bytes_.size()) return false;
    if (wanted != 0) std::memcpy(values, bytes_.data(), wanted);
    bytes_ = bytes_.subspan(wanted);
    return true;
  }
  std::span<const std::byte> rest() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

void Copy(void* to, const void* from, size_t bytes) {
  if (bytes != 0 && to != from) std::memmove(to, from, bytes);
}

std::span<const std::byte> BytesOf(Region region) {
  return {static_cast<const std::byte*>(region.address), region.bytes};
}

Parcel ParcelOf(int peer, Region region) { return {peer, static_cast<std::byte*>(region.address), region.bytes}; }

std::vector<Extent> ExtentsOf(std::span<const Region> first, std::span<const Region> second = {}) {
  std::vector<Extent> extents;
  for (const Region& region : first) extents.push_back(region.extent());
  for (const Region& region : second) extents.push_back(region.extent());
  return extents;
}

/// Whether all ranks must bring the same number of elements, in one layout.
bool HasSameData(CallKind kind) {
  return kind == CallKind::kAllReduce || kind == CallKind::kBroadcast || kind == CallKind::kReduce ||
         kind == CallKind::kReduceScatter || kind == CallKind::kOperator;
}

}  // namespace

HierarchicalCollectives::HierarchicalCollectives(Meeting meeting, int rank, DeviceMemory& memory,
                                                 std::chrono::milliseconds limit, std::unique_ptr<HostLink> link)
    : rank_(rank),
      limit_(limit),
      group_(meeting.group),
      hosts_(meeting.hosts),
      host_(hosts_.HostOf(rank)),
      transport_(std::move(meeting), hosts_.IndexOf(rank), memory, limit),
      link_(std::move(link)),
      announced_(group_.size()),
      local_data_(Locals().size()),
      payloads_(static_cast<size_t>(hosts_.count())),
      received_(static_cast<size_t>(hosts_.count())),
      messages_sent_(group_.size()),
      messages_received_(group_.size()),
      under_way_(group_.size()),
      send_order_(group_.size()),
      receive_order_(group_.size()),
      inboxes_(group_.size()) {
  transport_.ShareRegionsBesidePayloads();
  for (int host = 0; host < hosts_.count(); ++host) {
    if (host == host_) continue;
    const size_t announcement = sizeof(Call) + sizeof(uint64_t) + sizeof(Extent) * 2 * group_.size();
    received_[static_cast<size_t>(host)].resize(sizeof(RecordHeader) + kSmallPayload +
                                                hosts_.MembersOf(host).size() * announcement);
  }
  watcher_ = std::thread([this] { Watch(); });
}

HierarchicalCollectives::~HierarchicalCollectives() {
  {
    const std::lock_guard lock(watch_mutex_);
    stop_ = true;
    watch_.notify_all();
  }
  watcher_.join();
  const bool listens =
      std::any_of(inboxes_.begin(), inboxes_.end(), [](const auto& inbox) { return inbox != nullptr; });
  if (!listens) return;
  link_->Break(NPU_ERROR_STOPPED, "EI0002: hccl: this rank has left the group");  // ends the readers
  inboxes_.clear();
}

// ---- failures -------------------------------------------------------------------------------------------------------

void HierarchicalCollectives::Run(const std::function<void()>& body) {
  try {
    transport_.peers().ThrowIfFailed();
    body();
  } catch (const LinkError& error) {
    FailLink(error, " in " + distributed::Describe(Of(rank_).call) + " number " + std::to_string(number_));
  } catch (const CommError& error) {
    Fail(error.status(), error.what());
  }
}

void HierarchicalCollectives::Fail(npu_status status, const std::string& text) {
  try {
    transport_.peers().Fail(status, text);
  } catch (const CommError&) {
    watch_.notify_all();  // the watcher tells the other hosts
    throw;
  }
}

void HierarchicalCollectives::FailLink(const LinkError& error, const std::string& where) {
  if (!error.reason.empty()) {
    Fail(error.reason_status, error.reason + " (reported by rank " + std::to_string(NumberOf(error.peer())) + ")");
  }
  switch (error.cause()) {
    case LinkError::Cause::kTimeout:
      Fail(NPU_ERROR_TIMEOUT, "EI0002: hccl: waited " + std::to_string(limit_.count()) +
                                  " ms (HCCL_EXEC_TIMEOUT) for rank(s) " + NameOf(error.peer()) + where);
    case LinkError::Cause::kLost:
      Fail(NPU_ERROR_SYSTEM, "EI0002: hccl: lost the connection to rank " + NameOf(error.peer()) + where +
                                 "; the process has ended or the network is down (" + error.what() + ")");
    case LinkError::Cause::kBroken:
      break;
  }
  Fail(NPU_ERROR_STOPPED, error.what());
}

std::string HierarchicalCollectives::NameOf(int rank) const {
  const ProcessIdentity& identity = group_[static_cast<size_t>(rank)];
  return std::to_string(identity.rank) + " (process " + std::to_string(identity.pid) + " on host " + identity.host +
         (identity.host_id == "-" ? "" : ", NPU_HCCL_HOST_ID " + identity.host_id) + ")";
}

void HierarchicalCollectives::Abort(const char* reason) noexcept {
  transport_.Abort(reason);
  watch_.notify_all();
}

void HierarchicalCollectives::Wait(LinkOperation& operation) {
  const Counted counted(waiting_);
  operation.Wait();
}

/// A wait for the link does not see the control page, and the other hosts do not see it at all: this thread breaks the
/// link when the page says that the group has failed.
void HierarchicalCollectives::Watch() {
  std::unique_lock lock(watch_mutex_);
  for (;;) {
    try {
      if (waiting_.load() > 0) CheckNeighbours();
      transport_.peers().ThrowIfFailed();
    } catch (const CommError& error) {
      lock.unlock();
      link_->Break(error.status(), error.what());
      return;
    }
    if (stop_) return;
    watch_.wait_for(lock, waiting_.load() > 0 ? kCheckInterval : kIdleInterval);
  }
}

void HierarchicalCollectives::CheckNeighbours() {
  const Peers& peers = transport_.peers();
  for (int peer = 0; peer < peers.size(); ++peer) {
    if (peer == peers.rank() || peers.HasLeft(peer) || IsAlive(peers.ranks()[static_cast<size_t>(peer)])) continue;
    if (peers.HasLeft(peer)) continue;  // it left and ended between the two looks
    peers.Fail(NPU_ERROR_SYSTEM,
               "EI0002: hccl: " + peers.NameOf(peer) + " ended while its group waits for ranks on other hosts");
  }
}

// ---- meeting --------------------------------------------------------------------------------------------------------

void HierarchicalCollectives::Meet(const Call& call, std::span<const Extent> parts, std::span<const std::byte> data,
                                   std::span<const Region> regions,
                                   const std::function<void(std::vector<std::byte>&)>& host_payload) {
  ++number_;
  announced_[static_cast<size_t>(rank_)].call = call;
  const AnnouncementHead head{static_cast<uint32_t>(parts.size()), static_cast<uint32_t>(data.size())};
  announcement_.clear();
  Append(announcement_, &head, 1);
  Append(announcement_, parts.data(), parts.size());
  Append(announcement_, data.data(), data.size());
  transport_.Meet(call, announcement_, regions);
  ParseLocal();
  BuildRecord(host_payload);
  SwapRecords();
  RequireSameCalls();
}

void HierarchicalCollectives::ParseLocal() {
  for (size_t index = 0; index < Locals().size(); ++index) {
    const int local = Locals()[index];
    Announcement& announced = announced_[static_cast<size_t>(local)];
    announced.call = transport_.CallOf(static_cast<int>(index));
    Reader reader(transport_.PayloadOf(static_cast<int>(index)));
    AnnouncementHead head{};
    if (reader.Read(&head, 1)) announced.parts.resize(head.part_count);
    if (!reader.Read(announced.parts.data(), announced.parts.size()) || reader.rest().size() != head.data_bytes) {
      throw CommError(NPU_ERROR_SYSTEM, "hccl: what rank " + std::to_string(local) + " announced cannot be read");
    }
    local_data_[index] = reader.rest();
  }
}

bool HierarchicalCollectives::LocalCallsAgree() const {
  const Call& mine = Of(rank_).call;
  return std::all_of(Locals().begin(), Locals().end(), [&](int local) {
    const Call& other = Of(local).call;
    return SameCall(mine, other) && (!HasSameData(mine.kind) || other.count == mine.count);
  });
}

void HierarchicalCollectives::BuildRecord(const std::function<void(std::vector<std::byte>&)>& host_payload) {
  RecordHeader header{kRecordMagic, number_, 0};
  record_.clear();
  Append(record_, &header, 1);
  for (const int local : Locals()) {
    const Announcement& announced = Of(local);
    const uint64_t count = announced.parts.size();
    Append(record_, &announced.call, 1);
    Append(record_, &count, 1);
    Append(record_, announced.parts.data(), announced.parts.size());
  }
  const size_t begin = record_.size();
  const auto is_operator = [&](int local) { return Of(local).call.kind == CallKind::kOperator; };
  if (std::any_of(Locals().begin(), Locals().end(), is_operator)) {
    AppendOperations(record_);
  } else if (host_payload && LocalCallsAgree()) {  // else every rank will find the mismatch
    host_payload(record_);
  }
  header.payload_bytes = record_.size() - begin;
  std::memcpy(record_.data(), &header, sizeof header);
  payloads_[static_cast<size_t>(host_)] = std::span<const std::byte>(record_).subspan(begin);
}

/// What each rank of this host is about to do: its length and its text, empty unless it is the start of an operator.
void HierarchicalCollectives::AppendOperations(std::vector<std::byte>& payload) const {
  const size_t longest = std::min(kOperationBytes, kSmallPayload / Locals().size() - sizeof(uint32_t));
  for (const int local : Locals()) {
    std::span<const std::byte> text;
    if (Of(local).call.kind == CallKind::kOperator) text = DataOf(local);
    const auto length = static_cast<uint32_t>(std::min(longest, text.size()));
    Append(payload, &length, 1);
    Append(payload, text.data(), length);
  }
}

std::string HierarchicalCollectives::Describe(int rank) const {
  const Call& call = Of(rank).call;
  if (call.kind != CallKind::kOperator) return distributed::Describe(call);
  const int host = hosts_.HostOf(rank);
  Reader reader(PayloadOf(host));
  std::string text;
  for (const int member : hosts_.MembersOf(host)) {
    uint32_t length = 0;
    if (!reader.Read(&length, 1) || length > reader.rest().size()) break;
    text.resize(length);
    reader.Read(text.data(), length);
    if (member == rank) return text;
  }
  return distributed::Describe(call);
}

/// Rank number i of a host takes the record of each other host from number i there, modulo its size.
void HierarchicalCollectives::SwapRecords() {
  std::vector<Parcel> sends;
  std::vector<Parcel> receives;
  const int index = hosts_.IndexOf(rank_);
  for (int host = 0; host < hosts_.count(); ++host) {
    if (host == host_) continue;
    std::vector<std::byte>& room = received_[static_cast<size_t>(host)];
    receives.push_back({hosts_.Pick(host, index), room.data(), room.size()});
    for (const int peer : hosts_.MembersOf(host)) {
      if (hosts_.Pick(host_, hosts_.IndexOf(peer)) == rank_) sends.push_back({peer, record_.data(), record_.size()});
    }
  }
  Wait(*link_->Start(Channel::kRecords, sends, receives));
  for (int host = 0; host < hosts_.count(); ++host) {
    if (host != host_) ParseRecord(host);
  }
}

void HierarchicalCollectives::ParseRecord(int host) {
  Reader reader(received_[static_cast<size_t>(host)]);
  RecordHeader header{};
  bool readable = reader.Read(&header, 1) && header.magic == kRecordMagic && header.number == number_;
  for (const int member : hosts_.MembersOf(host)) {
    Announcement& announced = announced_[static_cast<size_t>(member)];
    uint64_t count = 0;
    readable = readable && reader.Read(&announced.call, 1) && reader.Read(&count, 1) && count <= 2 * group_.size();
    if (readable) announced.parts.resize(count);
    readable = readable && reader.Read(announced.parts.data(), announced.parts.size());
  }
  if (!readable || header.payload_bytes > reader.rest().size()) {
    throw CommError(NPU_ERROR_SYSTEM, "hccl: call number " + std::to_string(number_) + ": the record of rank " +
                                          NameOf(hosts_.MembersOf(host).front()) +
                                          " and its neighbours cannot be read; do all hosts run the same version of "
                                          "npu-distributed?");
  }
  payloads_[static_cast<size_t>(host)] = reader.rest().first(header.payload_bytes);
}

void HierarchicalCollectives::FailMismatch(int first, int second, const std::string& detail) {
  throw CommError(NPU_ERROR_TASK_FAILED,
                  "EI0005: hccl: ranks called different collectives in call number " + std::to_string(number_) +
                      ": rank " + std::to_string(NumberOf(first)) + " " + Describe(first) + ", rank " +
                      std::to_string(NumberOf(second)) + " " + Describe(second) + detail +
                      ". Every rank of a group must issue the same collectives in the same order with matching sizes, "
                      "types and memory formats");
}

/// Every rank compares the same announcements, so all of them fail together or none does.
void HierarchicalCollectives::RequireSameCalls() {
  const Call& first = Of(0).call;
  const bool same_data = HasSameData(first.kind);
  const auto fits_first = [&](const Announcement& other) {
    return SameCall(first, other.call) && (!same_data || other.call.count == first.count) &&
           (first.kind != CallKind::kReduceScatter ||
            std::ranges::equal(other.parts, Of(0).parts, [](const Extent& a, const Extent& b) { return Fits(a, b); }));
  };
  for (int peer = 1; peer < size(); ++peer) {
    if (!fits_first(Of(peer))) FailMismatch(0, peer, "");
  }
  if (!same_data) return;
  RequireCommonLayout(
      size(), [this](int rank) { return Of(rank).call.layouts; },
      [this](int one, int other) { FailMismatch(one, other, ""); });
}

void HierarchicalCollectives::RequireFit(int sender, const Extent& offered, int receiver, const Extent& room) {
  if (Fits(offered, room)) return;
  FailMismatch(sender, receiver,
               DescribeMisfit(NumberOf(sender), offered, NumberOf(receiver), room, Of(sender).call.element));
}

Extent HierarchicalCollectives::OnlyExtentOf(int rank) const {
  const Call& call = Of(rank).call;
  return {call.count * SizeOf(call.element), call.layouts};
}

// ---- collectives that move ------------------------------------------------------------------------------------------

void HierarchicalCollectives::Barrier() {
  Run([&] { Meet({}, {}, {}, {}); });
}

void HierarchicalCollectives::Agree(std::string_view operation) {
  const std::span<const char> text(operation.substr(0, kOperationBytes));
  Run([&] { Meet(OperatorCall(operation), {}, std::as_bytes(text), {}); });
}

void HierarchicalCollectives::Broadcast(ElementType type, int root, Region data) {
  Run([&] {
    const bool small = data.bytes <= kSmallData;
    const bool is_root = rank_ == root;
    const Call call{CallKind::kBroadcast, type, ReduceKind::kSum, root, data.bytes / SizeOf(type), 1.0, data.layouts};
    if (small) {
      Meet(call, {}, is_root ? BytesOf(data) : std::span<const std::byte>{}, {}, [&](std::vector<std::byte>& payload) {
        if (!IsLocal(root)) return;
        const std::span<const std::byte> source = DataOf(root);
        payload.insert(payload.end(), source.begin(), source.end());
      });
      if (!is_root) Copy(data.address, PayloadOf(hosts_.HostOf(root)).data(), data.bytes);
      return;
    }
    Meet(call, {}, {}, {&data, 1});
    const int root_host = hosts_.HostOf(root);
    std::byte* own = static_cast<std::byte*>(data.address);
    const std::byte* source = IsLocal(root) ? RegionOf(root, 0).data() : own;
    std::vector<std::byte*> targets;
    const int holder = IsLocal(root) ? root : rank_;
    for (const int local : Locals()) {
      if (local != holder) targets.push_back(RegionOf(local, 0).data());
    }
    // A chunk is passed on inside the host while the next one travels.
    struct Moving {
      std::unique_ptr<LinkOperation> operation;
      size_t begin = 0;
      size_t bytes = 0;
    };
    const auto pass_on = [&](Moving& moving) {
      if (!IsLocal(root)) Wait(*moving.operation);
      for (std::byte* target : targets) Copy(target + moving.begin, source + moving.begin, moving.bytes);
      if (IsLocal(root)) Wait(*moving.operation);
    };
    std::vector<Moving> queue;
    const int lanes = hosts_.widest();
    for (int lane = 0; lane < lanes; ++lane) {
      if (hosts_.Pick(host_, lane) != rank_) continue;
      const Share share = ShareOf(lane, lanes, data.bytes, 64);
      for (size_t done = 0; done < share.count; done += kMoveChunk) {
        Moving moving;
        moving.begin = share.begin + done;
        moving.bytes = std::min(kMoveChunk, share.count - done);
        std::vector<Parcel> sends;
        std::vector<Parcel> receives;
        for (int host = 0; IsLocal(root) && host < hosts_.count(); ++host) {
          if (host == host_) continue;
          sends.push_back({hosts_.Pick(host, lane), const_cast<std::byte*>(source) + moving.begin, moving.bytes});
        }
        if (!IsLocal(root)) receives.push_back({hosts_.Pick(root_host, lane), own + moving.begin, moving.bytes});
        moving.operation = link_->Start(Channel::kData, sends, receives);
        queue.push_back(std::move(moving));
        if (queue.size() > 1) {
          pass_on(queue.front());
          queue.erase(queue.begin());
        }
      }
    }
    for (Moving& moving : queue) pass_on(moving);
    transport_.Part();
  });
}

void HierarchicalCollectives::AllGather(ElementType type, Region input, std::span<const Region> outputs) {
  Run([&] {
    const Call call{CallKind::kAllGather, type, ReduceKind::kSum, -1, input.bytes / SizeOf(type), 1.0, input.layouts};
    // All small: everything travels in the records.  Sizes agree on all ranks, or the call fails.
    std::vector<size_t> host_bytes(static_cast<size_t>(hosts_.count()), 0);
    bool small = true;
    for (int rank = 0; rank < size(); ++rank) {
      size_t& bytes = host_bytes[static_cast<size_t>(hosts_.HostOf(rank))];
      const size_t part = outputs[static_cast<size_t>(rank)].bytes;
      bytes += part;
      small = small && part <= kSmallData && bytes <= kSmallPayload;
    }
    const bool offers_small = small && input.bytes <= kSmallData;
    std::vector<Region> regions;
    if (!small) {
      regions.push_back(input);
      regions.insert(regions.end(), outputs.begin(), outputs.end());
    }
    Meet(call, ExtentsOf(outputs), offers_small ? BytesOf(input) : std::span<const std::byte>{}, regions,
         [&](std::vector<std::byte>& payload) {
           const size_t begin = payload.size();
           for (const int local : Locals()) {
             const std::span<const std::byte> data = DataOf(local);
             if (payload.size() - begin + data.size() > kSmallPayload) return;
             payload.insert(payload.end(), data.begin(), data.end());
           }
         });
    for (int sender = 0; sender < size(); ++sender) {
      for (int receiver = 0; receiver < size(); ++receiver) {
        RequireFit(sender, OnlyExtentOf(sender), receiver, Of(receiver).parts[static_cast<size_t>(sender)]);
      }
    }
    if (small) {
      for (int host = 0; host < hosts_.count(); ++host) {
        const std::byte* source = PayloadOf(host).data();
        for (const int member : hosts_.MembersOf(host)) {
          const Region& output = outputs[static_cast<size_t>(member)];
          Copy(output.address, source, output.bytes);
          source += output.bytes;
        }
      }
      return;
    }
    std::vector<Parcel> sends;
    std::vector<Parcel> receives;
    std::vector<int> carried;
    const int index = hosts_.IndexOf(rank_);
    for (int host = 0; host < hosts_.count(); ++host) {
      if (host == host_) continue;
      sends.push_back(ParcelOf(hosts_.Pick(host, index), input));
      for (const int sender : hosts_.MembersOf(host)) {
        if (hosts_.Pick(host_, hosts_.IndexOf(sender)) != rank_) continue;
        receives.push_back(ParcelOf(sender, outputs[static_cast<size_t>(sender)]));
        carried.push_back(sender);
      }
    }
    const std::unique_ptr<LinkOperation> operation = link_->Start(Channel::kData, sends, receives);
    for (size_t step = 0; step < Locals().size(); ++step) {
      const int local = Locals()[(step + static_cast<size_t>(index)) % Locals().size()];
      Copy(outputs[static_cast<size_t>(local)].address, RegionOf(local, 0).data(),
           outputs[static_cast<size_t>(local)].bytes);
    }
    Wait(*operation);
    for (const int sender : carried) {
      const Region& source = outputs[static_cast<size_t>(sender)];
      for (const int local : Locals()) {
        if (local != rank_) Copy(RegionOf(local, 1 + static_cast<size_t>(sender)).data(), source.address, source.bytes);
      }
    }
    transport_.Part();
  });
}

void HierarchicalCollectives::AllToAll(ElementType type, std::span<const Region> inputs,
                                       std::span<const Region> outputs) {
  Run([&] {
    size_t total = 0;
    for (const Region& input : inputs) total += input.bytes / SizeOf(type);
    std::vector<Region> regions;
    for (const int local : Locals()) regions.push_back(inputs[static_cast<size_t>(local)]);
    Meet({CallKind::kAllToAll, type, ReduceKind::kSum, -1, total, 1.0}, ExtentsOf(inputs, outputs), {}, regions);
    const auto ranks = static_cast<size_t>(size());
    for (size_t sender = 0; sender < ranks; ++sender) {
      for (size_t receiver = 0; receiver < ranks; ++receiver) {
        RequireFit(static_cast<int>(sender), announced_[sender].parts[receiver], static_cast<int>(receiver),
                   announced_[receiver].parts[ranks + sender]);
      }
    }
    std::vector<Parcel> sends;
    std::vector<Parcel> receives;
    for (int step = 1; step < size(); ++step) {
      const int to = (rank_ + step) % size();
      const int from = (rank_ + size() - step) % size();
      if (!IsLocal(to)) sends.push_back(ParcelOf(to, inputs[static_cast<size_t>(to)]));
      if (!IsLocal(from)) receives.push_back(ParcelOf(from, outputs[static_cast<size_t>(from)]));
    }
    const std::unique_ptr<LinkOperation> operation = link_->Start(Channel::kData, sends, receives);
    const auto index = static_cast<size_t>(hosts_.IndexOf(rank_));
    for (size_t step = 0; step < Locals().size(); ++step) {
      const int local = Locals()[(index + step) % Locals().size()];
      const Region& output = outputs[static_cast<size_t>(local)];
      Copy(output.address, RegionOf(local, index).data(), output.bytes);
    }
    Wait(*operation);
    transport_.Part();
  });
}

void HierarchicalCollectives::Scatter(ElementType type, int root, std::span<const Region> inputs, Region output) {
  Run([&] {
    const bool is_root = rank_ == root;
    std::vector<Region> regions{output};
    if (is_root) regions.insert(regions.end(), inputs.begin(), inputs.end());
    Meet({CallKind::kScatter, type, ReduceKind::kSum, root, output.bytes / SizeOf(type), 1.0, output.layouts},
         is_root ? ExtentsOf(inputs) : std::vector<Extent>{}, {}, regions);
    for (int receiver = 0; receiver < size(); ++receiver) {
      RequireFit(root, Of(root).parts[static_cast<size_t>(receiver)], receiver, OnlyExtentOf(receiver));
    }
    // The neighbours of the root carry its parts as well: they can read its memory.
    const int root_host = hosts_.HostOf(root);
    std::vector<Parcel> sends;
    std::vector<Parcel> receives;
    if (IsLocal(root)) {
      for (int peer = 0; peer < size(); ++peer) {
        if (IsLocal(peer) || hosts_.Pick(root_host, hosts_.IndexOf(peer)) != rank_) continue;
        const std::span<std::byte> part = RegionOf(root, 1 + static_cast<size_t>(peer));
        sends.push_back({peer, part.data(), part.size()});
      }
    } else {
      receives.push_back(ParcelOf(hosts_.Pick(root_host, hosts_.IndexOf(rank_)), output));
    }
    const std::unique_ptr<LinkOperation> operation = link_->Start(Channel::kData, sends, receives);
    if (IsLocal(root)) Copy(output.address, RegionOf(root, 1 + static_cast<size_t>(rank_)).data(), output.bytes);
    Wait(*operation);
    transport_.Part();
  });
}

void HierarchicalCollectives::Gather(ElementType type, int root, Region input, std::span<const Region> outputs) {
  Run([&] {
    const bool is_root = rank_ == root;
    std::vector<Region> regions{input};
    if (is_root) regions.insert(regions.end(), outputs.begin(), outputs.end());
    Meet({CallKind::kGather, type, ReduceKind::kSum, root, input.bytes / SizeOf(type), 1.0, input.layouts},
         is_root ? ExtentsOf(outputs) : std::vector<Extent>{}, {}, regions);
    for (int sender = 0; sender < size(); ++sender) {
      RequireFit(sender, OnlyExtentOf(sender), root, Of(root).parts[static_cast<size_t>(sender)]);
    }
    const int root_host = hosts_.HostOf(root);
    std::vector<Parcel> sends;
    std::vector<Parcel> receives;
    if (IsLocal(root)) {
      for (int peer = 0; peer < size(); ++peer) {
        if (IsLocal(peer) || hosts_.Pick(root_host, hosts_.IndexOf(peer)) != rank_) continue;
        const std::span<std::byte> part = RegionOf(root, 1 + static_cast<size_t>(peer));
        receives.push_back({peer, part.data(), part.size()});
      }
    } else {
      sends.push_back(ParcelOf(hosts_.Pick(root_host, hosts_.IndexOf(rank_)), input));
    }
    const std::unique_ptr<LinkOperation> operation = link_->Start(Channel::kData, sends, receives);
    if (IsLocal(root)) Copy(RegionOf(root, 1 + static_cast<size_t>(rank_)).data(), input.address, input.bytes);
    Wait(*operation);
    transport_.Part();
  });
}

}  // namespace npu::distributed
