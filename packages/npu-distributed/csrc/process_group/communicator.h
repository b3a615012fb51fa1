// A group on one device of this process: its collectives and the stream its collectives run on.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "collectives/connect.h"
#include "process_group/call_record.h"
#include "process_group/runtime_access.h"
#include "transport/process_directory.h"

namespace npu::distributed {

struct CommunicatorSettings {
  std::string name;  ///< empty: a unique one is made
  int rank = 0;
  int size = 1;
  int device = 0;
  npu_stream* stream = nullptr;
  std::vector<std::string> rank_names;  ///< in texts of the meeting; empty: "rank 0", ...
  std::vector<int> rank_numbers;        ///< in later texts; empty: 0, 1, ...
  std::vector<uint64_t> global_ranks;   ///< of the ranks; empty: not known
  std::function<void()> check_meeting;  ///< called while the ranks meet; throws to give up.  May be empty
  std::chrono::milliseconds connect_timeout{};
  std::chrono::milliseconds execution_timeout{};
  bool connect_at_first_call = false;  ///< the ranks meet in the first task; needs a name
};

class Communicator {
 public:
  using Body = std::function<void(Collectives&)>;

  /// Collective over the group; blocks until everybody has come, unless the settings put that off.  Throws CommError.
  /// `make_link` connects the ranks of different machines, if there are any.
  Communicator(const CommunicatorSettings& settings, KeyValueStore store, LinkFactory make_link);
  /// Ends what still runs (see Abort) and waits for it.
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  const std::string& name() const { return settings_.name; }
  int device() const { return settings_.device; }
  int rank() const { return settings_.rank; }
  int size() const { return settings_.size; }
  npu_stream* stream() const { return settings_.stream; }

  /// Queues `body` on the stream, behind everything queued there, as a task that may wait for peers.  `label` must be a
  /// static string.  The memory that `body` names must stay valid until `record` is finished.
  void Launch(const char* label, std::shared_ptr<CallRecord> record, Body body) {
    Queue({this, label, nullptr, std::move(record), std::move(body)});
  }
  /// The same for a step of the fused operator `label`: its failures name the operator, and the group watches its time.
  void LaunchFused(const char* label, const std::shared_ptr<CallRecord>& record, Body body);

  /// Who is told of each step of a fused operator that is queued.
  using FusedObserver = std::function<void(const char* label, const std::shared_ptr<CallRecord>& record)>;
  void ObserveFused(FusedObserver observer) { fused_observer_ = std::move(observer); }

  /// Text of the failure that ended this communicator; empty while it is healthy.
  std::string failure() const;

  /// Fails every queued and later call here and on the peers.  Thread-safe, does not wait.
  void Abort(const std::string& reason) noexcept;

  /// Waits until nothing is queued or running; false when `limit` passed first.
  bool Drain(std::chrono::milliseconds limit);

  /// Drains what peers still need, tells them that this rank leaves, and frees everything.  What does not end within
  /// `limit`, which all share, is aborted; what survives even that (a stream that never reaches the task) keeps its
  /// memory mapped.
  static void Close(std::vector<std::unique_ptr<Communicator>> communicators, std::chrono::milliseconds limit) noexcept;

 private:
  struct Operation {
    Communicator* communicator;
    const char* label;
    const char* fused_operator;  ///< null: a collective
    std::shared_ptr<CallRecord> record;
    Body body;
    std::string Attribute(const std::string& text) const;
  };
  void Queue(Operation operation);
  static npu_status RunTask(void* payload, npu_error* error);
  static void DestroyTask(void* payload);
  void NoteFailure(const std::string& text) noexcept;
  void OperationEnded() noexcept;
  ConnectSettings MakeConnectSettings();

  CommunicatorSettings settings_;
  RuntimeMemory memory_;
  MetProcesses met_;
  std::unique_ptr<Collectives> collectives_;
  FusedObserver fused_observer_;
  mutable std::mutex mutex_;
  std::condition_variable idle_;
  int in_flight_ = 0;
  std::string failure_;
};

}  // namespace npu::distributed
