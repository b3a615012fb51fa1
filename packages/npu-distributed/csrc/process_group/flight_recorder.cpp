#include "process_group/flight_recorder.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/profiler/combined_traceback.h>

#include <algorithm>

namespace npu::distributed {
namespace {

constexpr const char* kVersion = "2.4";

TraceValue Integer(uint64_t value) { return static_cast<int64_t>(value); }

TraceValue Sizes(const std::vector<std::vector<int64_t>>& sizes) {
  TraceValue::List list;
  for (const auto& shape : sizes) list.emplace_back(TraceValue::List(shape.begin(), shape.end()));
  return list;
}

TraceValue Types(const std::vector<c10::ScalarType>& types) {
  TraceValue::List list;
  for (const c10::ScalarType type : types) list.emplace_back(c10::toString(type));
  return list;
}

void SetTensors(const std::vector<at::Tensor>& tensors, std::vector<std::vector<int64_t>>& sizes,
                std::vector<c10::ScalarType>& types) {
  for (const at::Tensor& tensor : tensors) {
    sizes.push_back(tensor.sizes().vec());
    types.push_back(tensor.scalar_type());
  }
}

std::string RanksAsJson(const GroupIdentity& group) {
  TraceValue::List ranks;
  for (int rank = 0; rank < group.size; ++rank) ranks.emplace_back(Integer(group.GlobalRank(rank)));
  return TraceValue(std::move(ranks)).Json();
}

/// The Python stacks of the entries, by entry.  Needs the interpreter lock.
std::vector<TraceValue> Symbolize(const std::vector<std::shared_ptr<torch::CapturedTraceback>>& stacks) {
  std::vector<torch::CapturedTraceback*> known;
  for (const auto& stack : stacks) {
    if (stack) known.push_back(stack.get());
  }
  const torch::SymbolizedTracebacks symbols = torch::symbolize(known);
  TraceValue::List frames;
  for (const torch::unwind::Frame& frame : symbols.all_frames) {
    frames.emplace_back(
        TraceValue::Dict{{"name", frame.funcname}, {"filename", frame.filename}, {"line", Integer(frame.lineno)}});
  }
  std::vector<TraceValue> result;
  size_t next = 0;
  for (const auto& stack : stacks) {
    TraceValue::List list;
    if (stack) {
      for (const uint64_t index : symbols.tracebacks[next]) list.push_back(frames[index]);
      ++next;
    }
    result.emplace_back(std::move(list));
  }
  return result;
}

}  // namespace

void RecordedCall::SetInputs(const std::vector<at::Tensor>& tensors) { SetTensors(tensors, input_sizes, input_types); }

void RecordedCall::SetOutputs(const std::vector<at::Tensor>& tensors) {
  SetTensors(tensors, output_sizes, output_types);
}

FlightRecorder& FlightRecorder::Instance() {
  static FlightRecorder* recorder = new FlightRecorder;  // holds Python objects, and outlives every group
  return *recorder;
}

void FlightRecorder::Resize(size_t entries) {
  const std::lock_guard lock(mutex_);
  capacity_.store(entries, std::memory_order_relaxed);
  while (entries_.size() > entries) entries_.pop_front();
  if (entries == 0) next_id_ = 0;
}

std::shared_ptr<torch::CapturedTraceback> FlightRecorder::CaptureFrames() {
  return torch::CapturedTraceback::gather(/*python=*/true, /*script=*/false, /*cpp=*/false);
}

void FlightRecorder::AddGroup(std::shared_ptr<const GroupIdentity> group, std::shared_ptr<GroupProgress> progress) {
  const std::lock_guard lock(mutex_);
  Group& added = groups_[group->number];
  added.identity = std::move(group);
  added.progress = std::move(progress);
}

void FlightRecorder::SetTimed(size_t group) {
  const std::lock_guard lock(mutex_);
  groups_[group].timed = true;
}

void FlightRecorder::SetDescription(size_t group, const std::string& description) {
  // torch's own words for a group that nobody has described.
  const bool none = description == "default_pg" || description == "undefined";
  const std::lock_guard lock(mutex_);
  groups_[group].description = none ? "" : description;
}

void FlightRecorder::SetCommunicatorState(size_t group, const std::string& name, const std::string& state) {
  const std::lock_guard lock(mutex_);
  groups_[group].communicator = name;
  groups_[group].state = state;
}

uint64_t FlightRecorder::Record(RecordedCall call) {
  Entry dropped;  // freed without the lock
  const std::lock_guard lock(mutex_);
  const size_t capacity = capacity_.load(std::memory_order_relaxed);
  if (capacity == 0) return 0;
  if (entries_.size() >= capacity) {
    dropped = std::move(entries_.front());
    entries_.pop_front();
  }
  Entry& entry = entries_.emplace_back();
  entry.call = std::move(call);
  entry.id = next_id_++;
  entry.created = WallClock();
  return entry.id;
}

void FlightRecorder::Retire(const CallRecord* record) {
  const std::lock_guard lock(mutex_);
  // The watchdog retires in order of calls, so what it looks for is near the front of what is not retired yet.
  const auto found = std::find_if(entries_.begin(), entries_.end(), [record](const Entry& entry) {
    return !entry.retired && entry.call.record.get() == record;
  });
  if (found == entries_.end()) return;
  Discover(*found);
  found->retired = true;
}

void FlightRecorder::Discover(Entry& entry) {
  const CallRecord* record = entry.call.record.get();
  if (record == nullptr) return;
  const int64_t now = WallClock();
  const bool timed = groups_[entry.call.group->number].timed;
  if (timed && entry.discovered_start == 0 && record->started_at() != 0) entry.discovered_start = now;
  if (entry.discovered_end == 0 && record->state() == CallRecord::State::kDone) entry.discovered_end = now;
}

TraceValue::Dict FlightRecorder::Render(const Entry& entry, bool json) {
  const RecordedCall& call = entry.call;
  const CallRecord* record = call.record.get();
  const Group& group = groups_[call.group->number];
  const auto moment = [json](int64_t time) { return time != 0 || json ? TraceValue(time) : TraceValue(); };
  const char* state = entry.discovered_end != 0 ? "completed" : entry.discovered_start != 0 ? "started" : "scheduled";
  TraceValue::Dict dict{
      {"record_id", Integer(entry.id)},
      {"pg_id", Integer(call.group->number)},
      {"process_group", TraceValue::Tuple{{call.group->name, group.description}}},
      {"collective_seq_id", Integer(call.collective_sequence)},
      {"p2p_seq_id", Integer(call.p2p_sequence)},
      {"op_id", Integer(call.op_id)},
      {"profiling_name", call.profiling_name},
      {"time_created_ns", entry.created},
      {"input_sizes", Sizes(call.input_sizes)},
      {"input_dtypes", Types(call.input_types)},
      {"output_sizes", Sizes(call.output_sizes)},
      {"output_dtypes", Types(call.output_types)},
      {"state", state},
      {"time_discovered_started_ns", moment(entry.discovered_start)},
      {"time_discovered_completed_ns", moment(entry.discovered_end)},
      {"retired", entry.retired},
      {"timeout_ms", static_cast<int64_t>(call.timeout.count())},
      {"is_p2p", call.is_p2p},
  };
  if (group.timed && record != nullptr && entry.discovered_end != 0) {
    dict.emplace_back("duration_ms", static_cast<double>(record->ended_at() - record->started_at()) / 1e6);
  }
  return dict;
}

TraceValue::Dict FlightRecorder::Collect(const DumpContents& contents, bool json) {
  const auto number = [json](int64_t value) { return json ? TraceValue(std::to_string(value)) : TraceValue(value); };
  TraceValue::Dict config, status, communicators;
  TraceValue::List entries;
  std::vector<std::shared_ptr<torch::CapturedTraceback>> stacks;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [index, group] : groups_) {
      if (!group.identity) continue;
      config.emplace_back(group.identity->name, TraceValue::Dict{{"name", group.identity->name},
                                                                 {"desc", group.description},
                                                                 {"ranks", RanksAsJson(*group.identity)}});
      // Without timing nobody looks when a collective begins.
      const int64_t started = group.timed ? group.progress->started.load() : -1;
      status.emplace_back(std::to_string(index),
                          TraceValue::Dict{{"last_enqueued_collective", number(group.progress->enqueued.load())},
                                           {"last_started_collective", number(started)},
                                           {"last_completed_collective", number(group.progress->completed.load())}});
      if (group.communicator.empty()) continue;
      communicators.emplace_back(group.communicator, TraceValue::Dict{{"rank", std::to_string(group.identity->rank)},
                                                                      {"size", std::to_string(group.identity->size)},
                                                                      {"state", group.state}});
    }
    for (Entry& entry : entries_) {
      if (!contents.collectives) break;
      Discover(entry);
      if (contents.only_active && entry.discovered_end != 0) continue;
      entries.emplace_back(Render(entry, json));
      stacks.push_back(entry.call.frames);
    }
  }
  if (contents.stacks && !json && !entries.empty()) {
    const std::vector<TraceValue> frames = Symbolize(stacks);
    for (size_t i = 0; i < frames.size(); ++i) entries[i].Add("frames", frames[i]);
  }
  TraceValue::Dict result{{"version", kVersion},
                          {"pg_config", std::move(config)},
                          {"pg_status", std::move(status)},
                          {"hccl_comm_state", std::move(communicators)}};
  if (contents.collectives) result.emplace_back("entries", std::move(entries));
  return result;
}

std::string FlightRecorder::DumpJson(const DumpContents& contents) {
  return TraceValue(Collect(contents, /*json=*/true)).Json();
}

std::string FlightRecorder::DumpPickle(const DumpContents& contents) {
  return TraceValue(Collect(contents, /*json=*/false)).Pickle();
}

}  // namespace npu::distributed
