// Backend "hccl" of torch.distributed for npu tensors.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "process_group/communicator.h"
#include "process_group/environment.h"
#include "process_group/group_diagnosis.h"
#include "process_group/hccl_config.h"
#include "process_group/per_process.h"
#include "process_group/watchdog.h"
#include "process_group/work.h"

namespace npu::distributed {

/// A collective is a task on the group's communication stream, behind what the caller's current stream holds now.  The
/// calling thread never waits for peers, except when the first collective makes the communicator.
class ProcessGroupHCCL : public c10d::Backend {
 public:
  struct Options final : c10d::Backend::Options {
    explicit Options(const char* backend = "hccl") : c10d::Backend::Options(backend) {}
    std::chrono::milliseconds op_timeout{10'000};
    bool is_high_priority_stream = false;
    std::string group_id;
    HcclConfig hccl_config;
  };

  ProcessGroupHCCL(c10::intrusive_ptr<c10d::Store> store, int rank, int size, c10::intrusive_ptr<Options> options);
  ~ProcessGroupHCCL() override;

  const std::string getBackendName() const override { return "hccl"; }
  c10::intrusive_ptr<Backend::Options> getBackendOptions() override;
  c10::intrusive_ptr<Options> options() const { return options_; }
  bool supportsCoalescing() const override { return true; }
  void setTimeout(std::chrono::milliseconds timeout) override;
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override;
  c10d::ErrorType getError() override;
  void eagerConnectSingleDevice(at::Device device) override;
  void waitForPendingWorks() override;

  void startCoalescing() override;
  c10::intrusive_ptr<c10d::Work> endCoalescing() override;

  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& options) override;
  c10::intrusive_ptr<c10d::Work> allreduce_coalesced(std::vector<at::Tensor>& tensors,
                                                     const c10d::AllreduceCoalescedOptions& options) override;
  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors,
                                           const c10d::BroadcastOptions& options) override;
  c10::intrusive_ptr<c10d::Work> reduce(std::vector<at::Tensor>& tensors, const c10d::ReduceOptions& options) override;
  c10::intrusive_ptr<c10d::Work> allgather(std::vector<std::vector<at::Tensor>>& outputs,
                                           std::vector<at::Tensor>& inputs,
                                           const c10d::AllgatherOptions& options) override;
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& output, at::Tensor& input,
                                                 const c10d::AllgatherOptions& options) override;
  c10::intrusive_ptr<c10d::Work> allgather_into_tensor_coalesced(std::vector<at::Tensor>& outputs,
                                                                 std::vector<at::Tensor>& inputs,
                                                                 const c10d::AllgatherOptions& options) override;
  c10::intrusive_ptr<c10d::Work> reduce_scatter(std::vector<at::Tensor>& outputs,
                                                std::vector<std::vector<at::Tensor>>& inputs,
                                                const c10d::ReduceScatterOptions& options) override;
  c10::intrusive_ptr<c10d::Work> _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                                      const c10d::ReduceScatterOptions& options) override;
  c10::intrusive_ptr<c10d::Work> reduce_scatter_tensor_coalesced(std::vector<at::Tensor>& outputs,
                                                                 std::vector<at::Tensor>& inputs,
                                                                 const c10d::ReduceScatterOptions& options) override;
  c10::intrusive_ptr<c10d::Work> alltoall_base(at::Tensor& output, at::Tensor& input,
                                               std::vector<int64_t>& output_splits, std::vector<int64_t>& input_splits,
                                               const c10d::AllToAllOptions& options) override;
  c10::intrusive_ptr<c10d::Work> alltoall(std::vector<at::Tensor>& outputs, std::vector<at::Tensor>& inputs,
                                          const c10d::AllToAllOptions& options) override;
  c10::intrusive_ptr<c10d::Work> scatter(std::vector<at::Tensor>& outputs, std::vector<std::vector<at::Tensor>>& inputs,
                                         const c10d::ScatterOptions& options) override;
  c10::intrusive_ptr<c10d::Work> gather(std::vector<std::vector<at::Tensor>>& outputs, std::vector<at::Tensor>& inputs,
                                        const c10d::GatherOptions& options) override;
  c10::intrusive_ptr<c10d::Work> barrier(const c10d::BarrierOptions& options) override;

  c10::intrusive_ptr<c10d::Work> send(std::vector<at::Tensor>& tensors, int peer, int tag) override;
  c10::intrusive_ptr<c10d::Work> recv(std::vector<at::Tensor>& tensors, int peer, int tag) override;
  /// Raises: a receiver names its sender.
  c10::intrusive_ptr<c10d::Work> recvAnysource(std::vector<at::Tensor>& tensors, int tag) override;
  /// Raises: tensors must be dense.
  c10::intrusive_ptr<c10d::Work> allreduce_sparse(std::vector<at::Tensor>& tensors,
                                                  const c10d::AllreduceOptions& options) override;
  c10::intrusive_ptr<c10d::Work> allgather_coalesced(std::vector<std::vector<at::Tensor>>& outputs,
                                                     std::vector<at::Tensor>& inputs,
                                                     const c10d::AllgatherOptions& options) override;

  // Beyond c10d::Backend.
  /// All transfers at once, whatever their order; "isend" or "irecv", tensor and group rank of the peer for each.
  c10::intrusive_ptr<c10d::Work> BatchTransfers(const std::vector<std::string>& ops, std::vector<at::Tensor>& tensors,
                                                const std::vector<int64_t>& peers);
  c10::intrusive_ptr<c10d::Work> ReduceInto(at::Tensor& output, at::Tensor& input, const c10d::ReduceOptions& options);
  /// Rank r gets `splits[r]` rows of the reduced input; empty splits mean equal ones.
  c10::intrusive_ptr<c10d::Work> ReduceScatterUneven(at::Tensor& output, at::Tensor& input,
                                                     const std::vector<int64_t>& splits,
                                                     const c10d::ReduceScatterOptions& options);
  /// Rank r gives `splits[r]` rows of the output; empty splits mean equal ones.
  c10::intrusive_ptr<c10d::Work> AllGatherUneven(at::Tensor& output, at::Tensor& input,
                                                 const std::vector<int64_t>& splits,
                                                 const c10d::AllgatherOptions& options);
  /// Calls of this thread between the two, on whatever groups, are queued at the outermost end, as one task per group.
  static void GroupStart();
  static void GroupEnd();

  /// Destroys the communicators without waiting for pending works, which fail.  The next collective makes new ones.
  void abort() override;
  void Abort(const std::string& reason);
  /// Waits for the own works, then destroys the communicators.  Idempotent.
  void shutdown() override;
  /// Refuses further calls; the communicators are the caller's to close.
  std::vector<std::unique_ptr<Communicator>> EndCalls();

  /// Name of the communicator on the current device; "" when there is none and `create` is false.
  std::string CommName(int rank, bool create);
  void SetCommName(const std::string& name);
  /// Address of the communicator on the current device, made if needed.
  int64_t CommHandle(int rank);
  /// Id of the stream collectives run on; made if needed.
  int64_t CollectiveStreamId(int device);
  /// The same, or -1 before it exists.
  int64_t ExistingStreamId() const;
  /// Id of the stream on which sends to and receives from `peer` run, or -1 before it exists.
  int64_t PairStreamId(int peer) const;
  void SetDefaultTimeout(std::chrono::milliseconds timeout) { setTimeout(timeout); }
  void AddEphemeralTimeout(std::chrono::milliseconds timeout);
  void ClearWatchedWorks();
  /// 0 init, 1 run, 2 stop: a stopped watchdog keeps the works and does not look at them.
  void SetWatchdogStatus(int status);
  void enableCollectivesTiming() override;
  /// Whether a collective has failed, nobody has dealt with it, and the process is to end for it.
  bool MustEndProcess();
  [[noreturn]] void EndProcess();
  /// Forgets communicators that have failed; healthy ones stay.
  void Resume(int device);
  /// Removes what this rank has published for communicators that do not stand.
  void DeleteStoreKeys();
  /// The zero-copy pool of the uneven collectives: int8[bytes] on the current device.
  at::Tensor RegisterWindow(int64_t bytes, const std::vector<int64_t>& peers);
  at::Tensor Window() const;
  bool SwitchNic(int rank, int ranks_count, const std::vector<int64_t>& ranks,
                 const std::vector<bool>& use_backup) const;

 private:
  /// How long a caller's stream that waits for a failed collective gets to come to its error.
  static constexpr std::chrono::seconds kStreamLimit{10};

  /// What a collective does, before it is queued.
  struct Call {
    c10d::OpType op;
    const char* label;  ///< static
    std::vector<at::Tensor> inputs;
    std::vector<at::Tensor> outputs;
    Communicator::Body body;
    std::vector<at::Tensor> scratch{};  ///< of the task, unknown to the caller
    bool blocks_host = false;
    std::chrono::milliseconds timeout = c10d::kUnsetTimeout;
    std::vector<Transfer> transfers{};                   ///< point-to-point calls have these and no body
    int peer = -1;                                       ///< of a single transfer
    std::shared_ptr<torch::CapturedTraceback> frames{};  ///< of the caller, when they are recorded
  };
  /// A communicator and its stream.  The group has one, and so has every pair of ranks that talks point to point.
  struct Lane {
    std::shared_ptr<npu_stream> lease;
    npu_stream* stream = nullptr;  ///< of the lease
    EventPtr start;                ///< what the current stream held at the latest call
    std::unique_ptr<Communicator> communicator;
    int generation = 0;  ///< of the communicator: how many this lane has closed
    std::string registered_name;
  };
  /// Calls that become one task.
  struct Unit {
    std::shared_ptr<Submission> submission;
    std::vector<Communicator::Body> bodies;
    std::vector<Transfer> transfers;
    std::vector<at::Tensor> outputs;
    std::vector<at::Tensor> kept;  ///< whose memory the task uses: before it is queued nothing else keeps it
    bool has_collective = false;
    bool has_transfer = false;
  };
  struct ThreadScope;  ///< the open _group_start of a thread
  static ThreadScope& Scope();

  // process_group_hccl.cpp
  /// Whether this process is a forked child of the one that the group belongs to.
  bool IsInherited() const { return ForkCount() != forks_; }
  /// Throws when it is.
  void RequireOwnProcess() const;
  /// Keeps for ever what cannot be ended here: threads, pages and connections are those of the group's own process.
  void Abandon();

  // process_group_names.cpp
  /// The name of the communicator unless another one is set; empty: a unique one is made.
  std::string DefaultName() const;
  /// The group, for people.
  std::string Description() const;

  // process_group_calls.cpp
  c10::intrusive_ptr<c10d::Work> Run(Call call);
  Unit* OpenUnit(const Lane& lane, int device);
  static std::shared_ptr<Submission> NewSubmission(const Lane& lane, int device);
  c10::weak_intrusive_ptr<c10d::Backend> WeakSelf();
  uint64_t NextSequence(bool is_transfer, Unit* unit);
  WorkHCCL::Start DescribeWork(Call& call, Unit* unit, std::shared_ptr<Submission> submission);
  void OrderAfterCaller(Lane& lane, int device);
  void RecordStream(const std::vector<at::Tensor>& tensors, npu_stream* stream) const;
  void Submit(Lane& lane, Unit unit, const char* label);
  std::chrono::milliseconds NextTimeout(std::chrono::milliseconds requested);

  // process_group_watch.cpp
  void StartWatching();
  /// The one place where a call becomes known to those that watch calls.
  void Announce(const Call& call, const WorkHCCL::Start& work);
  void Describe(const Call& call, const WorkHCCL::Start& work);
  void DescribeTransfers(const Call& call, AnnouncedCall announced);
  /// The same for a coalescing block, whose calls have been announced one by one.
  void AnnounceBlock(const WorkHCCL::Start& work, bool is_transfer);
  /// A step of the fused operator `label`: the watchdog gives it the group's time.
  void WatchFused(const char* label, const std::shared_ptr<CallRecord>& record);

  // process_group_lanes.cpp
  bool UsesPairs() const { return environment_.point_to_point_megabytes > 0; }
  Lane& GroupLane(int device);
  Lane& PairLane(int device, int peer);
  Communicator& CommunicatorOn(int device) { return *GroupLane(device).communicator; }
  npu_stream* StreamOn(int device);
  void LeaseStreamFor(Lane& lane, int device) const;
  void CheckUsable(const Lane& lane);
  std::unique_ptr<Communicator> Connect(const Lane& lane, int peer);
  void NameRanks(CommunicatorSettings& settings, int peer) const;
  /// Throws once the group has been aborted since this was called.
  std::function<void()> AbortCheck();
  /// Takes the lanes' communicators; to be closed without the lock.
  std::vector<std::unique_ptr<Communicator>> TakeCommunicators(bool only_failed);
  void CloseCommunicators(std::chrono::milliseconds limit, bool only_failed = false);
  /// Does not take the group's lock: the watchdog calls it while a caller may wait under that lock for space on a
  /// stream that is stuck.
  void AbortCommunicators(const std::string& reason);
  void Adopt(Lane& lane, std::unique_ptr<Communicator> communicator);
  template <class Visit>
  void ForEachLane(Visit visit);

  c10::intrusive_ptr<c10d::Work> ReduceScatterInto(c10d::OpType op, at::Tensor& output, std::vector<at::Tensor> inputs,
                                                   std::vector<Region> parts, const c10d::ReduceOp& reduce,
                                                   std::chrono::milliseconds timeout);
  c10::intrusive_ptr<c10d::Work> Transport(c10d::OpType op, std::vector<at::Tensor>& tensors, int peer);

  const c10::intrusive_ptr<c10d::Store> store_;
  const c10::intrusive_ptr<Options> options_;
  const Environment environment_;
  const c10::intrusive_ptr<c10d::Store> meeting_store_;  // where ranks meet
  const uint64_t forks_ = ForkCount();

  std::mutex live_mutex_;            // taken under mutex_ or alone
  std::vector<Communicator*> live_;  // what the lanes own, for AbortCommunicators
  uint64_t aborts_ = 0;              // for a communicator that is being made meanwhile
  std::string abort_reason_;

  mutable std::mutex mutex_;  // guards what follows; never held while a communicator waits for peers, bar its making
  int device_ = -1;           // the one device of this group, once used
  Lane group_lane_;
  std::vector<std::unique_ptr<Lane>> pair_lanes_;  // by peer; empty before the first transfer
  std::string comm_name_;
  uint64_t sequence_ = 0;           // of collectives
  uint64_t transfer_sequence_ = 0;  // of point-to-point calls; a batch counts once
  std::chrono::milliseconds ephemeral_timeout_{0};
  std::optional<std::weak_ptr<CallRecord>> ephemeral_until_;  // the first work that has it
  bool shut_down_ = false;
  bool failure_told_ = false;  // a call has been refused with the failure that ended the group
  std::optional<Unit> coalescing_;
  bool coalescing_open_ = false;
  at::Tensor window_;
  std::unique_ptr<GroupDiagnosis> diagnosis_;
  std::unique_ptr<Watchdog> watchdog_;  // uses diagnosis_
};

/// Backend "lccl": the same under the name of the variant for one machine, which shared memory is in any case.
class ProcessGroupLCCL final : public ProcessGroupHCCL {
 public:
  using ProcessGroupHCCL::ProcessGroupHCCL;
  const std::string getBackendName() const override { return "lccl"; }
};

/// Shuts down every group of this process, giving pending works `limit`; called at interpreter exit.  When a failure
/// that nobody has dealt with is to end the process, calls `before_end` and ends it with SIGABRT.
void ShutdownAllGroups(std::chrono::milliseconds limit, const std::function<void()>& before_end);

}  // namespace npu::distributed
