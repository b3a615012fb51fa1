// Backend "hccl" of torch.distributed for npu tensors.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <unordered_map>
#include <variant>
#include <vector>

#include "process_group/communicator.h"
#include "process_group/environment.h"
#include "process_group/group_diagnosis.h"
#include "process_group/watchdog.h"
#include "process_group/work.h"

namespace npu::distributed {

/// A collective is a task on the group's communication stream, behind what the caller's current stream holds now.  The
/// calling thread never waits for peers, except when the first collective makes the communicator.
class ProcessGroupHCCL final : public c10d::Backend {
 public:
  using ConfigValue = std::variant<int64_t, std::string>;

  struct Options final : c10d::Backend::Options {
    Options() : c10d::Backend::Options("hccl") {}
    std::chrono::milliseconds op_timeout{10'000};
    bool is_high_priority_stream = false;
    std::string group_id;
    std::unordered_map<std::string, ConfigValue> hccl_config;
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

  // Not in this version: each raises NotImplementedError that says what to use.
  c10::intrusive_ptr<c10d::Work> send(std::vector<at::Tensor>& tensors, int peer, int tag) override;
  c10::intrusive_ptr<c10d::Work> recv(std::vector<at::Tensor>& tensors, int peer, int tag) override;
  c10::intrusive_ptr<c10d::Work> recvAnysource(std::vector<at::Tensor>& tensors, int tag) override;
  c10::intrusive_ptr<c10d::Work> allreduce_sparse(std::vector<at::Tensor>& tensors,
                                                  const c10d::AllreduceOptions& options) override;
  c10::intrusive_ptr<c10d::Work> allgather_coalesced(std::vector<std::vector<at::Tensor>>& outputs,
                                                     std::vector<at::Tensor>& inputs,
                                                     const c10d::AllgatherOptions& options) override;

  /// Destroys the communicators without waiting for pending works, which fail.  The next collective makes new ones.
  void abort() override;
  void Abort(const std::string& reason);
  /// Waits for the own works, then destroys the communicators.  Idempotent.
  void shutdown() override;

  /// Name of the communicator on the current device; "" when there is none and `create` is false.
  std::string CommName(int rank, bool create);
  void SetCommName(const std::string& name);
  /// Address of the communicator on the current device, made if needed.
  int64_t CommHandle(int rank);
  /// Id of the stream collectives run on; made if needed.
  int64_t CollectiveStreamId(int device);
  /// The same, or -1 before it exists.
  int64_t ExistingStreamId() const;
  void SetDefaultTimeout(std::chrono::milliseconds timeout) { setTimeout(timeout); }
  void AddEphemeralTimeout(std::chrono::milliseconds timeout);
  void ClearWatchedWorks();
  /// 0 init, 1 run, 2 stop: a stopped watchdog keeps the works and does not look at them.
  void SetWatchdogStatus(int status);
  void enableCollectivesTiming() override;
  /// Whether a collective has failed, nobody has dealt with it, and the process is to end for it.
  bool MustEndProcess();
  [[noreturn]] void EndProcess();

 private:
  struct Launch {
    c10d::OpType op;
    const char* label;
    std::vector<at::Tensor> inputs;
    std::vector<at::Tensor> outputs;
    Communicator::Body body;
    bool blocks_host = false;
    std::chrono::milliseconds timeout = c10d::kUnsetTimeout;
  };

  c10::intrusive_ptr<c10d::Work> Run(Launch launch);
  Communicator& CommunicatorOn(int device);
  npu_stream* StreamOn(int device);
  void ValidateConfig() const;
  std::chrono::milliseconds ConfiguredExecutionTimeout() const;
  std::chrono::milliseconds NextTimeout(std::chrono::milliseconds requested);
  void CloseCommunicator(std::chrono::milliseconds limit);
  c10::intrusive_ptr<c10d::Work> ReduceScatterInto(c10d::OpType op, at::Tensor& output, std::vector<at::Tensor> inputs,
                                                   const c10d::ReduceOp& reduce, std::chrono::milliseconds timeout);

  const c10::intrusive_ptr<c10d::Store> store_;
  const c10::intrusive_ptr<Options> options_;
  const Environment environment_;

  mutable std::mutex mutex_;  // guards what follows; never held while a communicator waits for peers, bar its making
  std::unique_ptr<Communicator> communicator_;
  npu_stream* stream_ = nullptr;
  int device_ = -1;  // the one device of this group, once used
  EventPtr start_;
  int generation_ = 0;
  std::string comm_name_;
  std::string registered_name_;
  uint64_t sequence_ = 0;
  std::chrono::milliseconds ephemeral_timeout_{0};
  std::weak_ptr<CallRecord> ephemeral_until_;
  bool shut_down_ = false;
  bool coalescing_ = false;
  std::vector<c10::intrusive_ptr<WorkHCCL>> coalesced_;
  std::unique_ptr<GroupDiagnosis> diagnosis_;
  std::unique_ptr<Watchdog> watchdog_;  // uses diagnosis_
};

/// Shuts down every group of this process, giving pending works `limit`; called at interpreter exit.  When a failure
/// that nobody has dealt with is to end the process, calls `before_end` and ends it with SIGABRT.
void ShutdownAllGroups(std::chrono::milliseconds limit, const std::function<void()>& before_end);

}  // namespace npu::distributed
