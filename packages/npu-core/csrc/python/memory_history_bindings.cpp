// Snapshots of the allocator, and the stacks its history keeps.
#include <torch/csrc/profiler/combined_traceback.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bindings.h"
#include "runtime/memory_history.h"
#include "runtime/out_of_memory.h"

namespace npu::python {
namespace {

using c10::CachingDeviceAllocator::BlockInfo;
using c10::CachingDeviceAllocator::SegmentInfo;

// Whether this thread belongs to Python, so that taking the GIL is safe: the driver's threads must not wait for it,
// since its holder may wait for them.  A thread that released the GIL around an operator is one of Python's.
bool is_python_thread() {
#if PY_VERSION_HEX >= 0x030D0000
  const bool finalizing = Py_IsFinalizing() != 0;
#else
  const bool finalizing = _Py_IsFinalizing() != 0;
#endif
  return Py_IsInitialized() != 0 && !finalizing && PyGILState_GetThisThreadState() != nullptr;
}

Context gather(bool native) noexcept {
  try {
    const bool python = is_python_thread();
    if (!python && !native) return nullptr;
    return torch::CapturedTraceback::gather(python, /*script=*/true, native);
  } catch (...) {
    return nullptr;  // a history must not break the program it looks at
  }
}

Context gather_python() { return gather(false); }
Context gather_python_and_native() { return gather(true); }

// Contexts of one snapshot, turned into lists of frames together: they have most frames in common.
class Frames {
 public:
  void want(const Context& context) {
    auto* traceback = dynamic_cast<torch::CapturedTraceback*>(context.get());
    if (traceback != nullptr && indices_.emplace(traceback, tracebacks_.size()).second)
      tracebacks_.push_back(traceback);
  }

  void resolve() {
    const auto symbolized = torch::symbolize(tracebacks_);
    std::vector<py::dict> frames;
    for (const auto& frame : symbolized.all_frames) {
      auto& entry = frames.emplace_back();
      entry["filename"] = frame.filename;
      entry["name"] = frame.funcname;
      entry["line"] = frame.lineno;
    }
    for (const auto& traceback : symbolized.tracebacks) {
      auto& list = lists_.emplace_back();
      for (const std::uint64_t index : traceback) list.append(frames.at(index));
    }
  }

  py::list of(const Context& context) const {
    const auto found = indices_.find(dynamic_cast<torch::CapturedTraceback*>(context.get()));
    return found == indices_.end() ? py::list() : lists_.at(found->second);
  }

 private:
  std::vector<torch::CapturedTraceback*> tracebacks_;
  std::unordered_map<const torch::CapturedTraceback*, std::size_t> indices_;
  std::vector<py::list> lists_;
};

const char* state_name(const BlockInfo& block) {
  if (block.allocated) return "active_allocated";
  return block.active ? "active_pending_free" : "inactive";
}

py::dict segment_dict(const SegmentInfo& segment, const Frames& frames) {
  py::list blocks;
  std::size_t address = segment.address;
  for (const BlockInfo& block : segment.blocks) {
    py::dict entry;
    entry["address"] = address;
    entry["size"] = block.size;
    entry["requested_size"] = block.requested_size;
    entry["state"] = state_name(block);
    entry["frames"] = frames.of(block.context_when_allocated);
    blocks.append(std::move(entry));
    address += block.size;
  }
  py::dict result;
  result["device"] = static_cast<int>(segment.device);
  result["address"] = segment.address;
  result["total_size"] = segment.total_size;
  result["allocated_size"] = segment.allocated_size;
  result["active_size"] = segment.active_size;
  result["requested_size"] = segment.requested_size;
  result["stream"] = reinterpret_cast<std::uintptr_t>(segment.stream);
  result["segment_type"] = segment.is_large ? "large" : "small";
  result["segment_pool_id"] = segment.owner_private_pool_id;
  result["is_expandable"] = segment.is_expandable;
  result["frames"] = frames.of(segment.context_when_allocated);
  result["blocks"] = std::move(blocks);
  return result;
}

const char* action_name(TraceEntry::Action action) {
  switch (action) {
    case TraceEntry::ALLOC:
      return "alloc";
    case TraceEntry::FREE_REQUESTED:
      return "free_requested";
    case TraceEntry::FREE_COMPLETED:
      return "free_completed";
    case TraceEntry::SEGMENT_ALLOC:
      return "segment_alloc";
    case TraceEntry::SEGMENT_FREE:
      return "segment_free";
    case TraceEntry::SEGMENT_MAP:
      return "segment_map";
    case TraceEntry::SEGMENT_UNMAP:
      return "segment_unmap";
    case TraceEntry::SNAPSHOT:
      return "snapshot";
    case TraceEntry::OOM:
      return "oom";
  }
  return "unknown";
}

py::dict entry_dict(const TraceEntry& entry, const Frames& frames) {
  py::dict result;
  result["action"] = action_name(entry.action_);
  result[entry.action_ == TraceEntry::OOM ? "device_free" : "addr"] = entry.addr_;
  result["size"] = entry.size_;
  result["stream"] = reinterpret_cast<std::uintptr_t>(entry.stream_);
  result["pool_id"] = entry.mempool_;
  result["time_us"] = static_cast<std::int64_t>(entry.time_.t_);
  result["frames"] = frames.of(entry.context_);
  return result;
}

py::dict snapshot_dict() {
  MemorySnapshot snapshot;
  {
    py::gil_scoped_release release;
    snapshot = memory_snapshot_with_traces();
  }
  Frames frames;
  for (const SegmentInfo& segment : snapshot.segments) {
    frames.want(segment.context_when_allocated);
    for (const BlockInfo& block : segment.blocks) frames.want(block.context_when_allocated);
  }
  for (const auto& trace : snapshot.traces)
    for (const TraceEntry& entry : trace) frames.want(entry.context_);
  frames.resolve();
  py::list segments;
  for (const SegmentInfo& segment : snapshot.segments) segments.append(segment_dict(segment, frames));
  py::list traces;
  for (const auto& trace : snapshot.traces) {
    py::list entries;
    for (const TraceEntry& entry : trace) entries.append(entry_dict(entry, frames));
    traces.append(std::move(entries));
  }
  py::dict result;
  result["segments"] = std::move(segments);
  result["device_traces"] = std::move(traces);
  return result;
}

// `level`: 0 = no stacks, 1 = of live blocks, 2 = also of allocations in the trace, 3 = also of frees.
void record_history(bool on, bool events, int level, bool native, std::size_t max_entries, bool clear,
                    const std::vector<std::string>& skipped_actions) {
  HistoryOptions options;
  options.contexts = on;
  options.events = on && events;
  options.level = static_cast<RecordContext>(level);
  if (on && level > 0) options.gather = native ? &gather_python_and_native : &gather_python;
  options.max_entries = max_entries;
  for (const std::string& action : skipped_actions)
    options.skipped_actions |= 1u << static_cast<unsigned>(c10::CachingDeviceAllocator::parseTraceEntryAction(action));
  py::gil_scoped_release release;
  record_memory_history(options, clear);
}

// The observer lives as long as the process: it may be called until the very end.
void attach_observer(py::object observer) {
  auto* callable = new py::object(std::move(observer));
  attach_out_of_memory_observer([callable](int device, std::size_t requested, std::size_t capacity, std::size_t free) {
    if (!is_python_thread()) return;
    py::gil_scoped_acquire acquire;
    try {
      (*callable)(device, requested, capacity, free);
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("out-of-memory observer");  // the out-of-memory error itself must reach the user
    }
  });
}

}  // namespace

void bind_memory_history(py::module_& module) {
  module.def("_memory_snapshot", call(snapshot_dict));
  module.def("_record_memory_history", call(record_history));
  module.def("_attach_out_of_memory_observer", call(attach_observer));
}

}  // namespace npu::python
