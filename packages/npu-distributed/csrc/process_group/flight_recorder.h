// The last collectives of this process, for whoever asks why a job hangs: a ring of entries, dumped as JSON or pickle.
#pragma once

#include <c10/core/ScalarType.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "process_group/call_record.h"
#include "process_group/group_identity.h"
#include "process_group/trace_value.h"

namespace at {
class Tensor;
}
namespace torch {
struct CapturedTraceback;
}

namespace npu::distributed {

/// One line of the record.
struct RecordedCall {
  std::shared_ptr<const GroupIdentity> group;
  uint64_t collective_sequence = 0;  ///< 0 for point-to-point calls
  uint64_t p2p_sequence = 0;
  uint64_t op_id = 0;
  std::string profiling_name;
  std::vector<std::vector<int64_t>> input_sizes;
  std::vector<c10::ScalarType> input_types;
  std::vector<std::vector<int64_t>> output_sizes;
  std::vector<c10::ScalarType> output_types;
  std::chrono::milliseconds timeout{};
  bool is_p2p = false;
  std::shared_ptr<const CallRecord> record;  ///< null for a member of a batch, whose last entry has the state
  std::shared_ptr<torch::CapturedTraceback> frames;

  void SetInputs(const std::vector<at::Tensor>& tensors);
  void SetOutputs(const std::vector<at::Tensor>& tensors);
};

struct DumpContents {
  bool collectives = true;
  bool stacks = true;
  bool only_active = false;
};

class FlightRecorder {
 public:
  static FlightRecorder& Instance();

  /// Keeps `entries` calls from now on; 0 turns recording off and forgets everything.
  void Resize(size_t entries);
  bool enabled() const noexcept { return capacity_.load(std::memory_order_relaxed) != 0; }

  /// Python frames of the calling thread.  Takes the interpreter lock: call it without any lock of this package.
  static std::shared_ptr<torch::CapturedTraceback> CaptureFrames();

  /// Adds a group to the dump; it stays there after its end, as its entries do.
  void AddGroup(std::shared_ptr<const GroupIdentity> group, std::shared_ptr<GroupProgress> progress);
  /// From now on durations are recorded for the group.
  void SetTimed(size_t group);
  void SetDescription(size_t group, const std::string& description);
  /// What the dump says about the group's communicator: "healthy", or why it is not.
  void SetCommunicatorState(size_t group, const std::string& name, const std::string& state);

  /// Returns the number of the entry.
  uint64_t Record(RecordedCall call);
  /// The watchdog has seen the end of what this record stands for.
  void Retire(const CallRecord* record);

  /// Stacks need the interpreter lock and so may block; everything else does not.
  std::string DumpJson(const DumpContents& contents);
  std::string DumpPickle(const DumpContents& contents);

 private:
  struct Entry {
    RecordedCall call;
    uint64_t id = 0;
    int64_t created = 0;
    int64_t discovered_start = 0;
    int64_t discovered_end = 0;
    bool retired = false;
  };
  struct Group {
    std::shared_ptr<const GroupIdentity> identity;
    std::shared_ptr<GroupProgress> progress;
    std::string description;
    std::string communicator;
    std::string state;
    bool timed = false;
  };

  void Discover(Entry& entry);
  TraceValue::Dict Render(const Entry& entry, bool json);
  TraceValue::Dict Collect(const DumpContents& contents, bool json);

  std::atomic<size_t> capacity_{0};
  std::mutex mutex_;
  std::deque<Entry> entries_;
  uint64_t next_id_ = 0;
  std::map<size_t, Group> groups_;
};

}  // namespace npu::distributed
