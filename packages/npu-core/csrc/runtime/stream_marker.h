#pragma once
#include <utility>
#include <vector>

#include "event.h"
#include "stream.h"

namespace npu {

// A marker is an event the allocators put on a stream to learn when its work so far is done.  Markers are pooled:
// taking and returning one allocates nothing in a steady state.

// Marks the present end of all `streams` or of none: false, and `marks` empty, when a queue is full and this thread may
// not wait for it; try again on another one.  A stream whose device no longer runs needs no marker and gets none.  May
// wait for room in a queue: call it without locks.
using Marks = std::vector<std::pair<Stream*, Event*>>;
bool mark_streams(const std::vector<Stream*>& streams, Marks& marks) noexcept;

bool marker_passed(const Event* marker) noexcept;
void wait_for_marker(const Event* marker) noexcept;
void return_marker(Event* marker) noexcept;

// Waits for everything queued on `stream` so far; leaves its error for the user's own synchronisation to find.
void drain_stream(const Stream* stream) noexcept;

// Whether the calling thread has used the runtime as a host thread.  Others may be threads of the driver, which must
// not wait for a queue that only they empty: memory they free is marked later, by the next host thread.
void note_host_thread() noexcept;
bool is_host_thread() noexcept;

}  // namespace npu
