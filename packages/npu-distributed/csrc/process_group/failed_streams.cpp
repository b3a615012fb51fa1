#include "process_group/failed_streams.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <cstdio>
#include <map>
#include <mutex>

#include "process_group/runtime_access.h"

namespace npu::distributed {
namespace {

constexpr std::chrono::milliseconds kMoment{500};

struct Failure {
  size_t group;
  WaitingStream waiting;
};

struct Failures {
  std::atomic<bool> any{false};
  std::mutex mutex;
  std::vector<Failure> list;

  /// Moves out what `wanted` says yes to.
  template <class Wanted>
  std::vector<Failure> Take(Wanted wanted) {
    std::vector<Failure> taken;
    const std::lock_guard lock(mutex);
    std::erase_if(list, [&](Failure& failure) {
      if (!wanted(failure)) return false;
      taken.push_back(std::move(failure));
      return true;
    });
    any.store(!list.empty(), std::memory_order_relaxed);
    return taken;
  }

  void Put(Failure failure) {
    const std::lock_guard lock(mutex);
    list.push_back(std::move(failure));
    any.store(true, std::memory_order_relaxed);
  }
};

Failures& All() {
  static Failures* failures = new Failures;  // groups may end during exit
  return *failures;
}

/// Waits for what is queued on `stream` now; false when `limit` passed first or the stream takes no work.
bool Reached(npu_stream* stream, std::chrono::milliseconds limit) {
  const npu_runtime_api& runtime = Runtime();
  const EventPtr end = MakeEvent();
  if (runtime.event_record(end.get(), stream) != NPU_OK) return false;
  return runtime.event_synchronize(end.get(), std::chrono::nanoseconds(limit).count()) == NPU_OK;
}

/// The error of a stream that has come to its end, which is taken from it; else empty.
std::string TakeError(npu_stream* stream) {
  return Runtime().stream_synchronize(stream) == NPU_OK ? "" : Runtime().last_error();
}

}  // namespace

void NoteFailedStream(size_t group, const WaitingStream& waiting) { All().Put({group, waiting}); }

void ClearFailedStreams(size_t group, std::optional<std::thread::id> thread, std::chrono::milliseconds limit) {
  const std::vector<Failure> failures = All().Take(
      [&](const Failure& failure) { return failure.group == group && (!thread || failure.waiting.thread == *thread); });
  std::map<npu_stream*, bool> reached;
  for (const Failure& failure : failures) {
    npu_stream* stream = failure.waiting.stream;
    const auto [entry, is_new] = reached.try_emplace(stream, false);
    if (is_new) entry->second = Reached(stream, limit);
    if (!entry->second) {
      All().Put(failure);
      continue;
    }
    const std::string error = TakeError(stream);
    // The name of the task that failed stands in the text: collectives and the waits for them are hccl::...
    if (error.empty() || error.find("hccl") != std::string::npos) continue;
    std::fprintf(stderr, "hccl: a stream that waited for a collective has failed for another reason: %s\n",
                 error.c_str());
  }
}

void RequireHealthyStream(npu_stream* stream) {
  if (!All().any.load(std::memory_order_relaxed)) [[likely]]
    return;
  const std::vector<Failure> failures =
      All().Take([&](const Failure& failure) { return failure.waiting.stream == stream; });
  if (failures.empty()) return;
  if (!Reached(stream, kMoment)) {
    for (const Failure& failure : failures) All().Put(failure);
    return;
  }
  const std::string error = TakeError(stream);
  if (error.empty()) return;
  C10_THROW_ERROR(DistBackendError,
                  "hccl: the current stream carries the error of an earlier collective, so what was queued on it "
                  "since was dropped, and this collective is not queued. The stream can be used again. Cause: " +
                      error);
}

}  // namespace npu::distributed
