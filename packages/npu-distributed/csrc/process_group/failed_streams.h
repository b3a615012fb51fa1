// Streams of callers that wait for a collective which has failed: they carry its error, drop what is queued on them,
// and pass the error on to whatever waits for them, until somebody takes it.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "npu/runtime.h"

namespace npu::distributed {

/// A stream that waits for a collective, and the thread that made it wait.
struct WaitingStream {
  npu_stream* stream;
  std::thread::id thread;
};

/// A collective of group number `group` has failed while `waiting` waited for it.
void NoteFailedStream(size_t group, const WaitingStream& waiting);

/// Takes the errors of the group's collectives from the streams that wait for them, or only from those that `thread`
/// has made wait.  Gives each stream `limit` to come to its end.  An error that no collective has caused goes to
/// stderr.
void ClearFailedStreams(size_t group, std::optional<std::thread::id> thread, std::chrono::milliseconds limit);

/// Throws DistBackendError when `stream`, on which a caller is about to begin a collective, is known to carry an error,
/// which is taken from it: queued behind that, the collective would be dropped here and fail on every peer.  Waits a
/// moment for a stream that is about to come to its error.
void RequireHealthyStream(npu_stream* stream);

}  // namespace npu::distributed
