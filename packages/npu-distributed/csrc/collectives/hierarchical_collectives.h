// Collectives of ranks on several machines: inside a machine through shared memory, between machines over a link.
//
// Every call begins with a meeting: the ranks of a host announce their calls in the control page, then each rank swaps
// the record of its host with one rank of every other host.  So all ranks know all calls and find the same mismatches,
// and what is small has already arrived with the records.
//
// Larger data is cut into lanes, as many as the largest host has ranks.  On each host one rank carries a lane to the
// ranks that carry the same lane on the other hosts; it reads and writes the memory of its local peers directly.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "collectives/collectives.h"
#include "collectives/host_inbox.h"
#include "collectives/host_link.h"
#include "transport/shared_memory_transport.h"

namespace npu::distributed {

class HierarchicalCollectives final : public Collectives {
 public:
  /// Largest group: what every rank announces must fit the control page.
  static constexpr int kMostRanks = 255;

  /// `limit` bounds each wait for peers (zero: for ever).  `memory` must outlive this.
  HierarchicalCollectives(Meeting meeting, int rank, DeviceMemory& memory, std::chrono::milliseconds limit,
                          std::unique_ptr<HostLink> link);
  ~HierarchicalCollectives() override;

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(group_.size()); }
  uint64_t identity() const override { return group_.front().nonce; }

  void AllReduce(ElementType type, ReduceKind kind, double factor, Region data) override;
  void Broadcast(ElementType type, int root, Region data) override;
  void AllGather(ElementType type, Region input, std::span<const Region> outputs) override;
  void Reduce(ElementType type, ReduceKind kind, double factor, int root, Region data) override;
  void ReduceScatter(ElementType type, ReduceKind kind, double factor, std::span<const Region> inputs,
                     Region output) override;
  void AllToAll(ElementType type, std::span<const Region> inputs, std::span<const Region> outputs) override;
  void Scatter(ElementType type, int root, std::span<const Region> inputs, Region output) override;
  void Gather(ElementType type, int root, Region input, std::span<const Region> outputs) override;
  void Barrier() override;
  void Agree(std::string_view operation) override;
  uint64_t call_number() const override { return number_; }
  void Exchange(std::span<const Transfer> transfers) override;
  void Abort(const char* reason) noexcept override;
  void Leave() noexcept override;

 private:
  /// What a rank announced in the current call.
  struct Announcement {
    Call call;
    std::vector<Extent> parts;  ///< where the kind of call has parts
  };
  /// Part of a reduction that one rank of each host carries.
  struct Item;
  struct ItemChunk;
  /// Messages of one Exchange with one rank of another host.
  struct Conversation;
  /// Counts a thread while it waits.
  class Counted {
   public:
    explicit Counted(std::atomic<int>& count) : count_(count) { count_.fetch_add(1); }
    ~Counted() { count_.fetch_sub(1); }

   private:
    std::atomic<int>& count_;
  };
  /// A header, maybe with a message inside, that has been sent and may not have arrived.
  struct ShortMessage {
    std::vector<std::byte> bytes;
    std::unique_ptr<LinkOperation> operation;
  };

  /// Runs a collective; what it throws becomes the failure of the group.
  void Run(const std::function<void()>& body);
  [[noreturn]] void Fail(npu_status status, const std::string& text);
  [[noreturn]] void FailLink(const LinkError& error, const std::string& where);
  void Wait(LinkOperation& operation);
  void Watch();
  void CheckNeighbours();
  int NumberOf(int rank) const { return group_[static_cast<size_t>(rank)].rank; }  ///< in texts
  std::string NameOf(int rank) const;

  // ---- meeting
  void Meet(const Call& call, std::span<const Extent> parts, std::span<const std::byte> data,
            std::span<const Region> regions, const std::function<void(std::vector<std::byte>&)>& host_payload = {});
  bool LocalCallsAgree() const;
  void ParseLocal();
  void BuildRecord(const std::function<void(std::vector<std::byte>&)>& host_payload);
  void SwapRecords();
  void ParseRecord(int host);
  void RequireSameCalls();
  void RequireFit(int sender, const Extent& offered, int receiver, const Extent& room);
  /// What `rank` said of the one region of its call.
  Extent OnlyExtentOf(int rank) const;
  [[noreturn]] void FailMismatch(int first, int second, const std::string& detail);
  const Announcement& Of(int rank) const { return announced_[static_cast<size_t>(rank)]; }
  /// Small data that a rank of this host brought.
  std::span<const std::byte> DataOf(int rank) const { return local_data_[static_cast<size_t>(hosts_.IndexOf(rank))]; }
  std::span<const std::byte> PayloadOf(int host) const { return payloads_[static_cast<size_t>(host)]; }
  /// The call of a rank, in words.
  std::string Describe(int rank) const;
  void AppendOperations(std::vector<std::byte>& payload) const;

  // ---- places
  const std::vector<int>& Locals() const { return hosts_.MembersOf(host_); }
  bool IsLocal(int rank) const { return hosts_.HostOf(rank) == host_; }
  std::span<std::byte> RegionOf(int local, size_t index) { return transport_.RegionOf(hosts_.IndexOf(local), index); }

  // ---- reductions (hierarchical_reductions.cpp)
  std::vector<double> LocalFactors() const;
  void ReduceSmall(ElementType type, ReduceKind kind, Region output);
  void AppendPartial(ElementType type, ReduceKind kind, std::vector<std::byte>& payload) const;
  void ReduceItems(ElementType type, ReduceKind kind, const std::vector<Item>& items, size_t item_count);

  // ---- point-to-point (host_messages.cpp)
  void Converse(Conversation& conversation);
  HostInbox& InboxOf(int peer);
  void WhileSending(const std::function<void()>& wait);
  void WaitForSend(LinkOperation& operation);

  const int rank_;
  const std::chrono::milliseconds limit_;
  const std::vector<ProcessIdentity> group_;
  const HostMap hosts_;
  const int host_;  ///< of this rank
  SharedMemoryTransport transport_;
  const std::unique_ptr<HostLink> link_;

  uint64_t number_ = 0;  ///< of the current call
  std::vector<Announcement> announced_;
  std::vector<std::span<const std::byte>> local_data_;
  std::vector<std::span<const std::byte>> payloads_;
  std::vector<std::byte> announcement_;
  std::vector<std::byte> record_;
  std::vector<std::vector<std::byte>> received_;

  std::vector<std::atomic<uint64_t>> messages_sent_;
  std::vector<std::atomic<uint64_t>> messages_received_;
  std::vector<std::deque<ShortMessage>> under_way_;  ///< to each peer
  std::vector<std::mutex> send_order_;               ///< one per peer: header and message of a send stay together
  std::vector<std::mutex> receive_order_;            ///< the same for receives
  std::mutex inbox_mutex_;                           ///< guards the making of inboxes
  std::vector<std::unique_ptr<HostInbox>> inboxes_;  ///< by peer; empty before the first message
  std::atomic<int> sends_waiting_{0};

  std::atomic<int> waiting_{0};  ///< threads that wait for the link
  std::mutex watch_mutex_;
  std::condition_variable watch_;
  bool stop_ = false;
  std::thread watcher_;
};

}  // namespace npu::distributed
